"""Replacing what depends on stored numbers alone by constants, where these are no larger.

onnxscript folds such nodes too, as torch exports them, but by limits that are the same whatever a
constant is made of, and it leaves layer norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate
from graftline.evaluate import Array
from graftline.passes.graph.emit import Emit, drop_unused
from graftline.passes.graph.meaning import DRAWS, EVALUATED_BYTES, evaluate_node
from graftline.passes.graph.shapes.inference import OPSET

SMALL = 1 << 16
"""Bytes that a constant may have whatever it is made of."""
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
Sources = frozenset[ir.Value]


def stored_nodes(graph: ir.Graph) -> dict[ir.Node, Sources]:
    """The nodes that depend on stored numbers alone, in order, and the initializers of each. What
    draws at random, decides by a body, or makes an output of the graph is none of them."""
    made: dict[ir.Value, Sources] = {}
    found: dict[ir.Node, Sources] = {}
    for node in graph:
        read = [v for v in node.inputs if v is not None]
        if node.domain not in ("", "ai.onnx") or node.op_type in DRAWS:
            continue
        if any(a.type in _BODIES for a in node.attributes.values()) or any(
            v.is_graph_output() for v in node.outputs
        ):
            continue
        if read and all(v in made or v.const_value is not None for v in read):
            sources = frozenset[ir.Value]().union(*(made.get(v, frozenset((v,))) for v in read))
            found[node] = sources
            made.update(dict.fromkeys(node.outputs, sources))
    return found


def allowed_bytes(sources: Sources) -> int:
    """The most bytes of a constant that is made of these: as many as they have, or SMALL. A table
    that is broadcast to all places is larger by far than the table, and stays a node."""
    tensors = [v.const_value for v in sources]
    return max(SMALL, sum(t.nbytes for t in tensors if t is not None))


def fold_stored(model: ir.Model, by: str) -> int:
    """Make constants of what depends on stored numbers alone and is not too large; weights that
    nobody reads any more go. Returns how many nodes went."""
    graph, count = model.graph, len(model.graph)
    arrays = _arrays(stored_nodes(graph))
    folded = {value.producer() for value in arrays}
    for value, array in arrays.items():
        users = [(n, i) for n, i in value.uses() if n not in folded]
        if users:
            held = Emit(graph, by).const(f"folded.{value.name}", array)
            for node, place in users:
                node.replace_input_with(place, held)
    drop_unused(model)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]
    return count - len(graph)


def foldable(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that would become constants."""
    made = {value.producer() for value in _arrays(stored_nodes(graph))}
    return {node for node in made if node is not None}


def _arrays(nodes: Mapping[ir.Node, Sources]) -> dict[ir.Value, Array]:
    """What the nodes make, of those that can be evaluated and of which all outputs are small
    enough. Behind one that stays all do."""
    found: dict[ir.Value, Array] = {}
    for node, sources in nodes.items():
        most = allowed_bytes(sources)
        given = [None if v is None else _numbers(v, found) for v in node.inputs]
        lacking = (v is not None and g is None for v, g in zip(node.inputs, given, strict=True))
        if any(lacking) or any((_bytes(v) or 0) > most for v in node.outputs):
            continue
        try:
            with np.errstate(all="ignore"):
                made = evaluate_node(node, given, OPSET)
        except CannotEvaluate:
            continue
        if all(array.nbytes <= most for array in made):
            found.update(zip(node.outputs, made, strict=False))
    return found


def _numbers(value: ir.Value, found: Mapping[ir.Value, Array]) -> Array | None:
    """A constant's; None for what is no constant since it would be too large, and for weights that
    are too large to look at."""
    tensor = value.const_value
    if tensor is None or tensor.nbytes > EVALUATED_BYTES:
        return found.get(value)
    return tensor.numpy()


def _bytes(value: ir.Value) -> int | None:
    """How many a value has, where its shape and type are known."""
    if value.shape is None or value.dtype is None:
        return None
    dims = [d for d in value.shape if isinstance(d, int)]
    return int(prod(dims) * value.dtype.itemsize) if len(dims) == len(value.shape) else None
