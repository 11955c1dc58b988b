"""Where a UNet's encoder ends and its decoder begins (Ronneberger et al., arXiv 1505.04597)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.anchors.latent_decoder import UPSAMPLES
from graftline.passes.graph.emit import drop_unused
from graftline.passes.graph.meaning import constant
from graftline.passes.graph.mismatch import Mismatch

FEATURE = "feature"
"""Names of what the decoder takes of the encoder, with a number."""
_SIZES = frozenset({"Shape", "Size"})
_STRIDED = frozenset({"Conv", "AveragePool", "MaxPool", "LpPool"})
_SCALES = 8
"""Most numbers in the scales of a Resize."""


@dataclass(frozen=True)
class SkipCut:
    """`features` are the values that a decoder reads of its encoder: those of the skip connections
    and that of the middle. `joins` are where skip connections end; `encoder` and `decoder` are
    nodes of either side."""

    features: tuple[ir.Value, ...]
    joins: tuple[ir.Node, ...]
    encoder: int
    decoder: int


def skip_cut(graph: ir.Graph, sample: ir.Value, prediction: ir.Value) -> SkipCut | Mismatch:
    """The cut of a graph that computes `prediction` of `sample`, or why it is not a UNet.

    A skip connection ends at a Concat of a value with another that is made of it, behind the last
    node that makes the sample smaller. The decoder is what depends on one, or on what makes the
    sample larger there. Names do not count; what depends on no sample, as a time embedding, is on
    neither side.
    """
    if bodies := [n for n in graph if _has_body(n)]:
        return Mismatch.over(bodies, "which side of a UNet its body is of cannot be told")
    numbers = _made_of(graph, [sample], sizes=False)
    nodes = [n for n in graph if any(v in numbers for v in n.outputs)]
    shrinking = [n for n in nodes if _shrinks(n)]
    above = _above(v for n in shrinking for v in n.inputs if v is not None)
    behind = [n for n in nodes if n not in shrinking and not any(v in above for v in n.outputs)]
    joins = [n for n in behind if n.op_type == "Concat" and _joins(graph, n, numbers)]
    if not joins:
        why = "no skip connection ends here: no Concat joins a value and what is made of it"
        return Mismatch.over(shrinking or nodes[:1], why)
    starts = [*joins, *(n for n in behind if n.op_type in UPSAMPLES)]
    inner = _made_of(graph, [v for n in starts for v in n.outputs], sizes=True)
    if prediction not in inner:
        return Mismatch.over(joins, "the prediction does not depend on these skip connections")
    own = [n for n in graph if n in starts or any(v in inner for v in n.outputs)]
    moved = _made_of(graph, [v for n in nodes for v in n.outputs], sizes=True)
    read = dict.fromkeys(v for n in own for v in n.inputs if v is not None)
    features = tuple(v for v in read if v in moved and v not in inner)
    if not features:
        return Mismatch.over(joins, "its skip connections are of the sample itself")
    return SkipCut(features, tuple(joins), len(nodes) - len(own), len(own))


def halves(model: ir.Model, cut: SkipCut, output: str) -> tuple[ir.Model, ir.Model]:
    """Of a graph that was cut, two: all of it, with the features as outputs beside `output`, and
    the decoder alone, with the features as inputs. Both keep all other inputs."""
    names = [v.name for v in cut.features]
    whole, decoder = model.clone(), model.clone()
    for graph in (whole.graph, decoder.graph):
        for value in [v for v in graph.outputs if v.name != output]:
            graph.outputs.remove(value)
    for number, value in enumerate(_named(whole.graph, names)):
        value.name = f"{FEATURE}.{number}"
        whole.graph.outputs.append(value)
    for number, value in enumerate(_named(decoder.graph, names)):
        given = ir.Value(name=f"{FEATURE}.{number}", shape=value.shape, type=value.type)
        decoder.graph.inputs.append(given)
        value.replace_all_uses_with(given)
    for part in (whole, decoder):
        drop_unused(part)
    return whole, decoder


def _named(graph: ir.Graph, names: Iterable[str | None]) -> list[ir.Value]:
    values = {v.name: v for n in graph for v in n.outputs}
    return [values[name] for name in names]


def _made_of(graph: ir.Graph, values: Iterable[ir.Value], sizes: bool) -> set[ir.Value]:
    """The values, and what nodes compute of them; through their sizes too, or by numbers alone."""
    found = set(values)
    for node in graph:
        if (sizes or node.op_type not in _SIZES) and any(v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def _above(values: Iterable[ir.Value]) -> set[ir.Value]:
    """The values, and what they are computed of."""
    todo = list(values)
    found = set(todo)
    while todo:
        node = todo.pop().producer()
        fresh = [v for v in (node.inputs if node else ()) if v is not None and v not in found]
        found.update(fresh)
        todo += fresh
    return found


def _joins(graph: ir.Graph, node: ir.Node, numbers: set[ir.Value]) -> bool:
    """Whether one value that a node puts side by side, not as a batch, is made of another."""
    if node.attributes.get_int("axis") == 0:
        return False
    parts = [v for v in node.inputs if v is not None and v in numbers]
    return any(other in _above([one]) for one in parts for other in parts if other is not one)


def _shrinks(node: ir.Node) -> bool:
    """Whether a node makes what it reads smaller along its axes."""
    if node.op_type in _STRIDED:
        return any(stride > 1 for stride in node.attributes.get_ints("strides") or ())
    if node.op_type == "Resize" and len(node.inputs) > 2 and node.inputs[2] is not None:
        scales = constant(node.inputs[2], _SCALES)
        return scales is not None and bool((scales < 1).any())
    return node.op_type == "SpaceToDepth"


def _has_body(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(a.type in kinds for a in node.attributes.values())
