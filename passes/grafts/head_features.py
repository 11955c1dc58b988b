"""head-features: what a draft head makes of its target's hidden states, in the target's own step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.head_notes import NORM, TAPPED, AdapterNote, TapReading
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts.head_parts import carried
from graftline.passes.graph.emit import Emit, free_name, new_output
from graftline.passes.graph.weights import tensor_of
from graftline.passes.laws.compare import Comparison
from graftline.passes.pipeline.graft import MADE_BY, Evaluate, Graft, Law, WeightFreeLaw
from graftline.ports import FEATURES, Port, by_role, read_ports, write_ports

FLOAT = ir.DataType.FLOAT
NEEDS = (
    "head-features needs a head that reads hidden states of certain layers, as EAGLE-3's; give it: "
    "--head PATH"
)


def features_formula(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The features are their formula in numpy, over what leaves the blocks of the host."""
    assert isinstance(graft, HeadFeatures)
    head, reading = _head(after)  # what a model carries is not cloned with it
    host = before.clone()
    names = [f"tapped.{place}" for place in range(len(reading.layers))]
    count = len(block_outputs(host.graph))
    sources = tapped_states(host.graph, graft.blocks_of(reading, count))
    for source, name in zip(sources, names, strict=True):
        tap = Emit(host.graph, graft.name()).op("Identity", [source])
        new_output(host.graph, tap, name, source.dtype or FLOAT, ["B", "N", "H"])
    outputs = evaluate(host, feed)
    taps = [outputs[name].astype(np.float64) for name in names]
    expected = _formula(head, reading, taps)
    got = evaluate(after, graft.neutral(feed, after))[FEATURES]
    comparison = Comparison(graft.name(), "features-formula", "float32")
    gap = comparison.output(FEATURES, got, expected)
    what = f"features of {len(taps)} taps are their formula"
    return Evidence(what, gap, comparison.limit)


def layers(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """What the features are made of is what leaves the layers that the head names, in its order."""
    named = _head(after)[1].layers
    expected = tapped_states(after.graph, named)
    features = next(value for value in after.graph.outputs if value.name == FEATURES)
    found = _sources(features, graft.name())
    if found != expected:
        names = [", ".join(str(value.name) for value in values) for values in (found, expected)]
        raise LawBroken(graft.name(), "layers", FEATURES, f"are of {names[0]}, not of {names[1]}")
    words = ("the final norm" if layer == NORM else str(layer) for layer in named)
    return Evidence(f"features are of the layers {', '.join(words)}")


@dataclass(frozen=True)
class HeadFeatures(Graft):
    """Adds the output features [B, N, H] of a draft head: the hidden states that leave some blocks
    of the host, or its final norm, side by side, each or all of them normed first where the head
    says so, and multiplied by its fc where it has one. Adds no input.

    `blocks`: of a host that was cut to so many, the nearest are read.
    """

    laws: ClassVar[tuple[Law, ...]] = (features_formula,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (layers,)

    blocks: int = 0

    def requires(self, model: ir.Model) -> None:
        if AdapterNote.read(_head(model)[0]) is not None:
            raise NotApplicable(NEEDS)
        if found := by_role(read_ports(model), FEATURES, "out"):
            raise NotApplicable("the graph has the features of a head already", [found[0].name])
        if not block_outputs(model.graph):
            raise NotApplicable("head-features needs stamped blocks; run anchors first")
        if NORM in _head(model)[1].layers and not with_role(model.graph, "final_norm"):
            raise NotApplicable("head-features: the head reads the final norm, which is not here")

    def apply(self, model: ir.Model) -> None:
        head, reading = _head(model)
        graph, count = model.graph, len(block_outputs(model.graph))
        emit = Emit(graph, self.name())
        states = tapped_states(graph, self.blocks_of(reading, count))
        taps = [_float(emit, state) for state in states]
        for place, tap in enumerate(taps):
            if (scale := _weight(emit, head, f"norm.{place}")) is not None:
                taps[place] = _norm(emit, tap, scale, reading.epsilon)
        value = taps[0] if len(taps) == 1 else emit.op("Concat", taps, axis=-1)
        if (scale := _weight(emit, head, "norm")) is not None:
            value = _norm(emit, value, scale, reading.epsilon)
        if (weight := _weight(emit, head, "fc")) is not None:
            value = emit.op("MatMul", [value, emit.op("Transpose", [weight], perm=[1, 0])])
        elif value in states:
            value = emit.op("Identity", [value])
        if (bias := _weight(emit, head, "fc.bias")) is not None:
            value = emit.op("Add", [value, bias])
        shape = ("B", "N", reading.width)
        new_output(graph, value, FEATURES, FLOAT, shape)
        port = Port(FEATURES, FEATURES, "out", "float32", shape)
        write_ports(model, [*read_ports(model), port])

    def within(self, blocks: int) -> HeadFeatures:
        return replace(self, blocks=blocks)

    def blocks_of(self, reading: TapReading, count: int) -> list[int]:
        """The blocks that are read of a host of `count`, and NORM for its final norm."""
        return [min(layer, count - 1) if self.blocks else layer for layer in reading.layers]


def tapped_states(graph: ir.Graph, layers: Sequence[int]) -> list[ir.Value]:
    """What leaves the blocks of a host, and its final norm."""
    stream, norms = block_outputs(graph), with_role(graph, "final_norm")
    return [norms[-1].outputs[0] if layer == NORM else stream[layer] for layer in layers]


def _head(model: ir.Model) -> tuple[ir.Model, TapReading]:
    """Raises NotApplicable for a model that carries none."""
    return carried(model, TapReading, NEEDS)


def _sources(value: ir.Value, made_by: str) -> list[ir.Value]:
    """What a value is computed of, weights aside, going back through the nodes of one graft."""
    node = value.producer()
    if node is None:
        return []
    if node.metadata_props.get(MADE_BY) != made_by:
        return [value]
    return [found for v in node.inputs if v is not None for found in _sources(v, made_by)]


def _weight(emit: Emit, head: ir.Model, name: str) -> ir.Value | None:
    value = head.graph.initializers.get(TAPPED + name)
    if value is None:
        return None
    return emit.initializer(free_name(emit.graph, TAPPED + name), tensor_of(value))


def _float(emit: Emit, value: ir.Value) -> ir.Value:
    return value if value.dtype in (None, FLOAT) else emit.op("Cast", [value], to=FLOAT)


def _norm(emit: Emit, value: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
    return emit.op("RMSNormalization", [value, scale], axis=-1, epsilon=epsilon)


def _formula(head: ir.Model, reading: TapReading, taps: list[Array]) -> Array:
    def weight(name: str) -> Array | None:
        value = head.graph.initializers.get(TAPPED + name)
        return None if value is None else tensor_of(value).numpy().astype(np.float64)

    def normed(x: Array, scale: Array | None) -> Array:
        if scale is None:
            return x
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + reading.epsilon) * scale

    parts = [normed(tap, weight(f"norm.{place}")) for place, tap in enumerate(taps)]
    both = normed(np.concatenate(parts, axis=-1), weight("norm"))
    fc, bias = weight("fc"), weight("fc.bias")
    product = both if fc is None else both @ fc.T
    return product + (0.0 if bias is None else bias)
