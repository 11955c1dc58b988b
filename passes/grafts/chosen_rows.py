"""The graph of some positions of a canvas, written over that of all: shapes, tables, and operands
that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graftline.passes.anchors.canvas.rows import CanvasRows, Rows, target
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.meaning import constant
from graftline.ports import Port
from graftline.roles import KEPT

END = np.iinfo(np.int64).max


@dataclass
class ChosenRows:
    """Rewrites a graph, in which the positions were `found`, for the `chosen` ones [B, M]; nodes
    are stamped `by` a pass."""

    graph: ir.Graph
    by: str
    found: CanvasRows
    chosen: ir.Value
    places: dict[tuple[int, int], ir.Value] = field(default_factory=dict[tuple[int, int], ir.Value])
    """Which of all rows a step has, by how many are fixed before and after the positions."""

    def __post_init__(self) -> None:
        self.first = self.graph[0]

    def shapes(self) -> None:
        """Reshapes and cuts, whatever the number of positions."""
        for node in self.found.reshapes:
            dims = target(self.found, node)
            assert dims is not None, "others were refused"
            node.replace_input_with(1, self._shape(node, dims))
            node.attributes.pop("allowzero", None)
        for node, place in self.found.cuts:
            self._cut(node, place)

    def _shape(self, node: ir.Node, dims: list[int | None]) -> ir.Value:
        """The shape of a reshape, of which one axis may be as long as its operand has rows."""
        held, value = [d for d in dims if d is not None], node.inputs[0]
        if len(held) == len(dims):
            return self._numbers("shape", held)
        assert value is not None
        emit, place = Emit(self.graph, self.by, node), dims.index(None)
        axis = self.found.rows[value].axis
        long = emit.op("Shape", [value], start=axis, end=axis + 1)
        before, behind = (
            [self._numbers("shape", part)] if part else [] for part in (held[:place], held[place:])
        )
        return emit.op("Concat", [*before, long, *behind], axis=0)

    def _numbers(self, name: str, numbers: list[int]) -> ir.Value:
        told = "_".join([name, *map(str, numbers)])
        return Emit(self.graph, self.by).const(told, numbers, np.int64)

    def _cut(self, node: ir.Node, place: int) -> None:
        """A slice that takes fixed rows away leaves as many of them as before."""
        value = node.inputs[0]
        assert value is not None
        rows = self.found.rows[value]
        left = self.found.rows[node.outputs[0]]
        sides = rows.before - left.before, left.after - rows.after or END
        for operand, (name, number) in enumerate(zip(("starts", "ends"), sides, strict=True), 1):
            held = constant(node.inputs[operand])
            assert held is not None, "others were refused"
            numbers = held.reshape(-1).tolist()
            numbers[place] = number
            node.replace_input_with(operand, self._numbers(name, numbers))

    def tables(self) -> None:
        """What is fixed for every position, at those of the step."""
        for node, place, rows in self.found.tables:
            self._table(node, place, rows)

    def attended(self, batch: int | str) -> list[Port]:
        """What positions are attended to by is kept; the ports of it, for so many rows."""
        known, ports = dict[ir.Value, ir.Value](), list[Port]()
        for node, place in self.found.attended:
            value = node.inputs[place]
            assert value is not None
            if value not in known:
                known[value] = self._keep(value, node, len(known), batch, ports)
            node.replace_input_with(place, known[value])
        return ports

    def _table(self, node: ir.Node, place: int, rows: Rows) -> None:
        """What is fixed for every position, at the positions of the step."""
        value, out = node.inputs[place], node.outputs[0]
        assert value is not None
        own, rank = len(self.found.shape(value)), len(self.found.shape(out))
        axis = rows.axis - rank + own
        emit = Emit(self.graph, self.by, node)
        if axis and self.found.batched(value):
            node.replace_input_with(place, self._elements(emit, value, axis, rows))
            return
        taken = emit.op("Gather", [value, self._indices(rows)], axis=axis)
        if axis:  # [.., B, M', ..]: the batch first
            order = [axis, *range(axis), *range(axis + 1, own + 1)]
            taken = emit.op("Transpose", [taken], perm=order)
        extra = rank - own - 1
        if extra:
            held = self._numbers("axes", list(range(1, 1 + abs(extra))))
            taken = emit.op("Unsqueeze" if extra > 0 else "Squeeze", [taken, held])
        node.replace_input_with(place, taken)

    def _elements(self, emit: Emit, value: ir.Value, axis: int, rows: Rows) -> ir.Value:
        """The same of what each row of the batch has for itself."""
        at = self._aligned(emit, axis, len(self.found.shape(value)), rows)
        front = emit.op("Shape", [value], start=0, end=axis)
        long = emit.op("Shape", [self._indices(rows)], start=1, end=2)
        behind = emit.op("Shape", [value], start=axis + 1)
        shape = emit.op("Concat", [front, long, behind], axis=0)
        return emit.op("GatherElements", [value, emit.op("Expand", [at, shape])], axis=axis)

    def _aligned(self, emit: Emit, axis: int, rank: int, rows: Rows) -> ir.Value:
        """Indices [B, 1, .., M', .., 1] along an axis."""
        axes = [a for a in range(1, rank) if a != axis]
        if not axes:
            return self._indices(rows)
        return emit.op("Unsqueeze", [self._indices(rows), self._numbers("axes", axes)])

    def _indices(self, rows: Rows) -> ir.Value:
        """Which of all rows a step has [B, M']: the chosen ones, between the fixed ones."""
        key = rows.before, rows.after
        if key not in self.places:
            emit, whole = Emit(self.graph, self.by, self.first), self.found.whole(rows)
            middle = self.chosen
            if rows.before:
                by = emit.const(f"rows.{rows.before}", [rows.before], np.int64)
                middle = emit.op("Add", [middle, by])
            sides = (range(rows.before), range(whole - rows.after, whole))
            parts = [self._fixed(emit, side) if side else None for side in sides]
            joined = [v for v in (parts[0], middle, parts[1]) if v is not None]
            self.places[key] = joined[0] if len(joined) == 1 else emit.op("Concat", joined, axis=1)
        return self.places[key]

    def _fixed(self, emit: Emit, side: range) -> ir.Value:
        """Fixed rows in every row of the batch."""
        held = emit.const(f"rows.{side.start}.{side.stop}", [list(side)], np.int64)
        batch = emit.op("Shape", [self.chosen], start=0, end=1)
        shape = emit.op("Concat", [batch, emit.const(f"size.{len(side)}", [len(side)], np.int64)],
                        axis=0)  # fmt: skip
        return emit.op("Expand", [held, shape])

    def _keep(
        self, value: ir.Value, node: ir.Node, number: int, batch: int | str, ports: list[Port]
    ) -> ir.Value:
        """An operand of all positions: what is kept, in which the step's own rows are written."""
        rows, shape = self.found.rows[value], self.found.shape(value)
        dtype = value.dtype
        assert dtype is not None
        sizes = {0: batch, rows.axis: self.found.whole(rows)}
        dims = tuple(sizes.get(axis, size) for axis, size in enumerate(shape))
        name, emit = f"{KEPT}.{number}", Emit(self.graph, self.by, node)
        held = new_input(self.graph, name, dtype, dims)
        at = self._aligned(emit, rows.axis, len(shape), rows)
        wide = emit.op("Expand", [at, emit.op("Shape", [value])])
        made = emit.op("ScatterElements", [held, wide, value], axis=rows.axis)
        new_output(self.graph, made, f"{name}.next", dtype, dims)
        port = Port(name, KEPT, "in", dtype.numpy().name, dims, number, state="running")
        ports += [port, replace(port, name=f"{name}.next", direction="out", mirror=name)]
        return made
