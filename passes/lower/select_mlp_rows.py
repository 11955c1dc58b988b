"""select-mlp-rows: a gated MLP computes the rows of a step that do not pass it by, no others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.passes.graph.emit import Emit, take_place
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.text import write
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.laws.gated import (
    ALWAYS,
    NEVER,
    parting_similarity,
    similarity_of,
    with_similarity,
)
from graftline.passes.pipeline.graft import BLOCK, ROLE, Evaluate, Graft, Law, Stage
from graftline.ports import GATE, read_ports

_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "MatMulNBits"})
LEFT = """
  needs = Not (passes)
  needed = Squeeze (needs, last_axis)
  coordinates = NonZero (needed)
  places = Transpose <perm = [1, 0]> (coordinates)
  left = Unsqueeze (places, axis_0)
"""
"""Where [1, L, 2] the L rows of a step stand that do not pass an MLP by, `passes` [B, N, 1]. The
leading 1 makes one sequence of the rows: every operator of an MLP finds three axes, as before."""


def selected(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Where no row passes by, where some do and others do not, and where all do, MLPs of the rows
    that are left give what those of all rows give; and the similarity is what it was."""
    if (was := similarity_of(before)) != (own := similarity_of(after)):
        by = f"is {own:g}, and was {was:g}"
        raise LawBroken(graft.name(), "selected", "the similarity", by)
    comparison, worst = Comparison(graft.name(), "selected", activation_dtype(after)), 0.0
    ports = read_ports(after)
    some = parting_similarity(graft.name(), "selected", before, feed, evaluate)
    for similarity in (NEVER, some, ALWAYS):
        expected, got = (
            written_slots(evaluate(with_similarity(model, similarity), feed), ports, feed)
            for model in (before, after)
        )
        worst = max(worst, comparison.outputs(got, expected, ports))
    count = sum(n.op_type == "ScatterND" for n in after.graph if GATE in n.metadata_props)
    what = f"{count} MLPs give on the rows left, all, some or none, what they give on all rows"
    return Evidence(what, worst, comparison.limit)


@dataclass(frozen=True)
class Gate:
    """A gated block's end: `node` chooses by rows between the stream without the MLP, `mid`, and
    with it, `full`; `passes` [B, N, 1] are the rows that pass by, and `later` those that pass by
    the next MLP, where there is one."""

    node: ir.Node
    passes: ir.Value
    mid: ir.Value
    full: ir.Value
    later: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node) -> Gate:
        """Read what gate-mlp stamped."""
        passes, mid, full = node.inputs
        assert passes is not None, "a Where has three inputs"
        assert mid is not None, "a Where has three inputs"
        assert full is not None, "a Where has three inputs"
        block = node.metadata_props[BLOCK]
        readers = [n for n in passes.consumers() if n.metadata_props.get(BLOCK) == block]
        later = [n.outputs[0] for n in readers if n.op_type == "Or"]
        return cls(node, passes, mid, full, later[0] if later else None)

    @property
    def saturated(self) -> ir.Value | None:
        """The rows that this MLP saturates, where it is judged."""
        judged = None if self.later is None else self.later.producer()
        return None if judged is None else judged.inputs[1]


@dataclass(frozen=True)
class SelectMlpRows(Graft):
    """Lets the MLPs that `gate-mlp` has gated, and the judgement of them, compute the rows that do
    not pass by, and no others: those are gathered, and what comes of them is scattered back.

    1. Where all rows of a step pass by, no row is left, and products of no rows cost nothing.
    2. A row does not depend on who passes by beside it, but for how a kernel rounds by the number
       of rows: one row alone is rounded unlike several in int4.
    3. The products stay nodes of the graph: of those within a branch of an If, ONNX Runtime packs
       the matrices again whenever it opens the graph, to let go of them for those of the file.
    4. Where a mixture of experts takes the shape of all rows to bring its own back to, it gets
       that of the rows left.
    """

    stage: ClassVar[Stage] = "lower"
    laws: ClassVar[tuple[Law, ...]] = (selected,)

    def requires(self, model: ir.Model) -> None:
        gated = [node for node in model.graph if GATE in node.metadata_props]
        if not gated:
            raise NotApplicable("select-mlp-rows finds no gated MLP; put gate-mlp before it")
        if any(node.op_type != "Where" for node in gated):
            raise NotApplicable(
                "select-mlp-rows: the MLPs of this graph compute the rows that are left already"
            )
        varying = _varying(model.graph)
        for node in gated:
            gate, block = Gate.of(node), node.metadata_props[GATE]
            own = _own(model.graph, gate)
            if not any(n.op_type in _PRODUCTS for n in own):
                raise NotApplicable(
                    f"select-mlp-rows: nothing of the MLP of block {block} is its gate's alone, so "
                    "that no row would be saved; run it behind lower-ort, and gate other blocks",
                    [n.name or n.op_type for n in own],
                )
            found = list(_operands(gate, own, varying))
            if odd := [operand for operand in found if isinstance(operand, Mismatch)]:
                what = f"select-mlp-rows cannot compute the MLP of block {block} for some rows"
                raise refusal(f"{what}; leave the block out by first or last of gate-mlp", odd)

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        for node in [n for n in graph if GATE in n.metadata_props]:
            gate = Gate.of(node)
            own = _own(graph, gate)
            found = _operands(gate, own, _varying(graph))
            self._select(graph, gate, own, [o for o in found if isinstance(o, Operand)])

    def _select(
        self, graph: ir.Graph, gate: Gate, own: Sequence[ir.Node], operands: Sequence[Operand]
    ) -> None:
        """Gather what the MLP reads of the rows that are left, and scatter what it makes of them
        over the stream without it, and over who passes by."""
        emit, width = Emit(graph, self.name(), gate.node), f"left.{gate.node.metadata_props[GATE]}"
        (left,) = write(emit, LEFT, {"passes": gate.passes}, ["left"])
        gathered: dict[ir.Value, ir.Value] = {}
        for operand in operands:
            if operand.shape:
                taken = emit.const(operand.name, operand.shape, np.int64)
            elif (taken := gathered.get(operand.value)) is None:
                taken = gathered[operand.value] = emit.op("GatherND", [operand.value, left])
                taken.shape, taken.type = operand.value.shape, operand.value.type
                _resize(taken, gate, width)
            operand.node.replace_input_with(operand.place, taken)
        ends = {gate.node, None if gate.later is None else gate.later.producer()}
        inner = [node for node in own if node not in ends]
        graph.remove(inner)
        graph.insert_before(gate.node, inner)
        for value in (v for node in inner for v in node.outputs):
            _resize(value, gate, width)
        chosen = emit.op("ScatterND", [gate.mid, left, gate.full])
        made = chosen.producer()
        assert made is not None, "it was made here"
        for stamp in (GATE, ROLE):
            made.metadata_props[stamp] = gate.node.metadata_props.pop(stamp)
        if gate.later is not None and (judged := gate.later.producer()) is not None:
            later = emit.op("ScatterND", [gate.passes, left, gate.saturated])
            take_place(judged, [later])
        take_place(gate.node, [chosen])


@dataclass(frozen=True)
class Operand:
    """What a node of an MLP reads at one place of all rows: values by row, to be gathered; or, as
    `shape`, the sizes of all rows, in whose place stand those of the rows left."""

    node: ir.Node
    place: int
    value: ir.Value
    shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return "rows." + "_".join(str(size) for size in self.shape)


def _operands(
    gate: Gate, own: Sequence[ir.Node], varying: Collection[ir.Value]
) -> Iterator[Operand | Mismatch]:
    """All that the nodes of an MLP read of a step from elsewhere."""
    made = {value for node in own for value in node.outputs}
    ends = {gate.node, None if gate.later is None else gate.later.producer()}
    for node in (n for n in own if n not in ends):
        for place, value in enumerate(node.inputs):
            if value is None or value in made or value not in varying:
                continue
            if _by_row(value, gate):
                yield Operand(node, place, value)
            elif shape := _shape_of_rows(node, place, gate):
                yield Operand(node, place, value, shape)
            else:
                yield Mismatch.at(value, f"{node.op_type} reads a value of all rows together")


def _by_row(value: ir.Value, gate: Gate) -> bool:
    """Whether a value is [B, N, ...] as the stream is."""
    shape, stream = value.shape, gate.mid.shape
    return shape is not None and stream is not None and tuple(shape)[:2] == tuple(stream)[:2]


def _shape_of_rows(node: ir.Node, place: int, gate: Gate) -> tuple[int, ...]:
    """The shape [1, L, ...] in place of [B, N, ...], -1 for L, where a Reshape is told that of all
    rows there; () where it is not."""
    out = node.outputs[0]
    if node.op_type != "Reshape" or place != 1 or out.shape is None or not _by_row(out, gate):
        return ()
    rest = [size for size in tuple(out.shape)[2:] if isinstance(size, int)]
    return (1, -1, *rest) if len(rest) == len(out.shape) - 2 else ()


def _resize(value: ir.Value, gate: Gate, width: str) -> None:
    """Say the shape that a value of an MLP has for the rows left: [1, L, ...] in place of
    [B, N, ...]; other sizes that depend on rows are for shape inference to find."""
    if value.shape is None:
        return
    begin, rest = (), tuple(value.shape)
    if _by_row(value, gate):
        begin, rest = (1, width), rest[2:]
    value.shape = ir.Shape([*begin, *(size if isinstance(size, int) else None for size in rest)])


def _varying(graph: ir.Graph) -> set[ir.Value]:
    """All values that depend on an input of the graph."""
    found = set(graph.inputs)
    for node in graph:
        if any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _own(graph: ir.Graph, gate: Gate) -> list[ir.Node]:
    """The nodes, in order, that only a gate's ends need: what it is judged by included, what it
    passes by, and who does, not."""
    ends = {gate.node.outputs[0], gate.later}
    own = set[ir.Node]()
    for node in reversed(list(graph)):
        if ends & set(node.outputs) or _is_read_by(node, own, gate):
            own.add(node)
    return [node for node in graph if node in own]


def _is_read_by(node: ir.Node, nodes: Collection[ir.Node], gate: Gate) -> bool:
    """Whether these nodes alone read what a node makes, besides which the gate does not need it."""
    if any(v in (gate.mid, gate.passes) or v.is_graph_output() for v in node.outputs):
        return False
    readers = [reader for value in node.outputs for reader in value.consumers()]
    return bool(readers) and all(reader in nodes for reader in readers)
