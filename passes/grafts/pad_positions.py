"""pad-positions: a fixed number of positions, in place of as many as a recogniser counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.facts import RecogniserFacts, read_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.upsampling import measure
from graftline.passes.graph.emit import Emit, drop_unused, new_output
from graftline.passes.graph.meaning import label
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.pipeline.graft import Evaluate, Graft, WeightFreeLaw
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import COUNTS, SCORES, SIGNAL, STATES

ALONG = (SCORES, STATES)
"""Roles of outputs [B, U, ...] along the positions."""
SIZE = 24
"""Places of the signal at which shapes are looked at."""
_SAME = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"})
"""Operators that pass one number on."""


def sized(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """Every shape follows from the sizes of the inputs alone."""
    odd = _open_shapes(after)
    if odd:
        by = f"{len(odd)} shapes depend on numbers"
        raise LawBroken(graft.name(), "sized", label(odd[0]), by)
    return Evidence(f"the shapes of {len(after.graph)} nodes follow from sizes")


@dataclass(frozen=True)
class PadPositions(Graft):
    """Scores a fixed number of `positions`, of which the first `counts` of each row are its text:
    an engine with shapes that follow from those of its inputs, which TensorRT can plan for.

    Adds the output counts [B] where the host only uses the number. Neutral: a text of no more
    positions, whose own are the host's.
    """

    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (sized,)

    positions: int = 64

    def requires(self, model: ir.Model) -> None:
        facts = read_facts(model)
        if not isinstance(facts, RecogniserFacts) or output_of(model, SCORES) is None:
            raise NotApplicable(f"{self.name()} needs a recogniser that scores positions")
        if self.positions < 1:
            raise NotApplicable(f"{self}: use at least one position")
        if facts.positions:
            raise NotApplicable(
                f"{self.name()}: the host scores {facts.positions} positions whatever it counts"
            )
        self.number(model)

    def number(self, model: ir.Model) -> ir.Value:
        """The one number of positions. Raises NotApplicable where there is none, or several."""
        roots = {_root(value) for value in _limits(model)}
        if len(roots) != 1:
            raise NotApplicable(
                f"{self.name()} looks for one number that the positions are counted by, and finds "
                f"{len(roots)}", [str(root.name) for root in roots],
            )  # fmt: skip
        return roots.pop()

    def apply(self, model: ir.Model) -> None:
        number, graph = self.number(model), model.graph
        along = [v for role in ALONG if (v := output_of(model, role)) is not None]
        ports = list(read_ports(model))
        if output_of(model, COUNTS) is None:
            ports.append(self._counted(model, number))
        emit = Emit(graph, self.name())
        shape = [] if number.shape is None or not number.shape.dims else [1]
        assert number.dtype is not None
        fixed = emit.const("positions", np.full(shape, self.positions), number.dtype.numpy())
        ir.convenience.replace_all_uses_with(number, fixed)
        drop_unused(model)
        dims: dict[str | None, tuple[int | str, ...]] = {}
        for value in along:
            value.shape = ir.Shape([*_padded(value.shape, self.positions)])
            dims[value.name] = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
        write_ports(model, [replace(p, shape=dims.get(p.name, p.shape)) for p in ports])
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None
        if odd := _open_shapes(model):
            raise NotApplicable(
                f"{self.name()}: the shape of {label(odd[0])} depends on other numbers than how "
                "many positions there are"
            )
        facts = read_facts(model)
        assert isinstance(facts, RecogniserFacts)
        write_facts(model, replace(facts, positions=self.positions))

    def _counted(self, model: ir.Model, number: ir.Value) -> Port:
        """The positions of each row, as an output: what the number is the largest of."""
        node = number.producer()
        if node is None or node.op_type != "ReduceMax" or node.inputs[0] is None:
            made = "an input" if node is None else label(node)
            raise NotApplicable(
                f"{self.name()}: nothing says how many positions each row has; the number of all "
                f"is {made}, and should be the largest of theirs"
            )
        each, emit = node.inputs[0], Emit(model.graph, self.name())
        counts = emit.op("Cast", [each], to=ir.DataType.INT64.value)
        flat = emit.op("Reshape", [counts, emit.const("flat", [-1], np.int64)])
        new_output(model.graph, flat, COUNTS, ir.DataType.INT64, ["B"])
        return Port(COUNTS, COUNTS, "out", "int64", ("B",))

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """What the host gives of its positions, of as many as are padded to."""
        found = evaluate(before, feed)
        return found | {role: found[role][:, : self.positions] for role in ALONG if role in found}

    def carried(self, outputs: Feed, after: ir.Model) -> Feed:
        """Of as many positions as the longest text has."""
        most = int(outputs[COUNTS].max())
        return outputs | {role: outputs[role][:, :most] for role in ALONG if role in outputs}


def _padded(shape: ir.Shape | None, positions: int) -> Iterator[int | ir.SymbolicDim]:
    assert shape is not None
    for place, dim in enumerate(shape):
        yield positions if place == 1 else dim


def _open_shapes(model: ir.Model) -> list[ir.Node]:
    """Nodes whose shapes depend on more than sizes, in order."""
    signal = input_of(model, SIGNAL)
    assert signal is not None
    try:
        found = measure(model.graph, signal, SIZE)
    except CannotEvaluate as error:
        raise NotApplicable(f"its shapes cannot be measured: {error}") from error
    return [n for n in model.graph if any(v.name and found.of(v) is None for v in n.outputs)]


def _limits(model: ir.Model) -> Iterator[ir.Value]:
    """What says how many numbers the ranges of unknown length have."""
    for node in _open_shapes(model):
        limit = node.inputs[1] if node.op_type == "Range" else None
        if limit is not None:
            yield limit


def _root(value: ir.Value) -> ir.Value:
    """The number that a value passes on."""
    node = value.producer()
    while node is not None and node.op_type in _SAME and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value
