"""Where the positions of a canvas stand in the values of a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graftline.passes.anchors.roles import dims_of
from graftline.passes.graph.shapes.shapes import Measure

MIXED = "positions are mixed by something that is not an attention"


@dataclass(frozen=True)
class Rows:
    """The positions of a canvas stand along `axis`, with so many fixed rows before and after them
    (a class token)."""

    axis: int
    before: int = 0
    after: int = 0


@dataclass
class CanvasRows:
    """Of a graph from its `canvas` on.

    `tables` are operands that hold a row for every position, `attended` those that positions are
    attended to by: each is a node and the place of the operand, with the rows that it has or stands
    for. `reshapes` are reshapes of rows; `cuts` are Slices that take fixed rows away, with what is
    left.
    """

    graph: ir.Graph
    canvas: ir.Value
    rows: dict[ir.Value, Rows] = field(default_factory=dict[ir.Value, Rows])
    columns: dict[ir.Value, int] = field(default_factory=dict[ir.Value, int])
    """The axis along which a value has a number for every position that is attended to."""
    tables: list[tuple[ir.Node, int, Rows]] = field(
        default_factory=list[tuple[ir.Node, int, Rows]]
    )
    attended: list[tuple[ir.Node, int]] = field(default_factory=list[tuple[ir.Node, int]])
    reshapes: list[ir.Node] = field(default_factory=list[ir.Node])
    cuts: list[tuple[ir.Node, int]] = field(default_factory=list[tuple[ir.Node, int]])
    measures: list[Measure] = field(default_factory=list[Measure])

    @property
    def positions(self) -> int:
        """Of the canvas."""
        long = dims_of(self.canvas)[1]
        assert isinstance(long, int)
        return long

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """At the first number of rows; () where it is not known."""
        return self.measures[0].of(value) or ()

    def batched(self, value: ir.Value | None) -> bool:
        """Whether the first axis of a value is the batch."""
        shapes = ([m.of(v) or () for m in self.measures] for v in (value, self.canvas))
        own, theirs = ([shape[:1] for shape in each] for each in shapes)
        return own == theirs

    def whole(self, rows: Rows) -> int:
        """How many rows a value has for all positions."""
        return rows.before + self.positions + rows.after

    def note(self, node: ir.Node, rows: Rows, columns: int | None = None) -> None:
        """Where a node's outputs have the positions, and what positions are attended to."""
        for value in node.outputs:
            self.rows[value] = rows
            if columns is not None:
                self.columns[value] = columns


def target(found: CanvasRows, node: ir.Node) -> list[int | None] | None:
    """The shape of a reshape whatever the batch and the number of positions; None where there is
    none. In it 0 keeps an axis, -1 takes the rest, and None is as many as the operand has rows,
    where no constant says it."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    given, made = ([m.of(v) or () for m in found.measures] for v in (value, out))
    was, now = found.rows[value].axis, found.rows[out].axis
    dims: list[int | None] = []
    for axis, sizes in enumerate(zip(*made, strict=True)):
        kept = axis < len(given[0]) and sizes == tuple(shape[axis] for shape in given)
        if axis == now:
            dims.append(0 if axis == was else None)
        elif len(set(sizes)) == 1:
            dims.append(sizes[0])
        else:
            dims.append(0 if kept and axis != was else -1)
    if -1 not in dims:  # a constant shape
        dims = [-1 if d is None else d for d in dims]
    return dims if dims.count(-1) <= 1 else None
