"""Where the positions of a canvas stand in every value of a masked generator, and what depends on
which of them a step computes: values for fixed positions, and what positions are attended to by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir

from graftline.passes.anchors.roles import dims_of, inputs_of
from graftline.passes.graph.meaning import World, constant
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.shapes.shapes import Measure

BATCHES = (2, 3)
"""Rows of the canvases that shapes are measured with."""
OTHER = 5
"""What else is free in a condition."""
_EACH = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "Equal", "Less",
    "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Not", "Neg", "Abs", "Sqrt",
    "Reciprocal", "Exp", "Log", "Erf", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Softsign",
    "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "Swish", "Mish", "HardSigmoid", "HardSwish",
    "Clip", "Round", "Floor", "Ceil", "Sign", "PRelu", "Cast", "CastLike", "Identity", "Dropout",
})  # fmt: skip
"""Operators that compute each element of those in its place."""
_ALONG = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LpNormalization": -1, "ArgMax": 0, "ArgMin": 0,
}  # fmt: skip
"""Operators that run over one axis, and which it is where they do not say."""
_BEHIND = frozenset({"LayerNormalization", "RMSNormalization"})
"""Operators that run over an axis and all behind it."""
_SIZES = frozenset({"Shape", "Size"})
_MIXED = "positions are mixed by something that is not an attention"


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


def canvas_rows(graph: ir.Graph, canvas: ir.Value) -> CanvasRows | Mismatch:
    """Follow the positions through a graph of fixed length; or the node that mixes them, or of
    which it is not known what it does to them."""
    found = CanvasRows(graph, canvas)
    for batch in BATCHES:
        found.measures.append(Measure(graph, World({}), inputs=_sizes(graph, canvas, batch)))
    found.rows[canvas] = Rows(1)
    for node in graph:
        if all(v not in found.rows for v in node.inputs) or node.op_type in _SIZES:
            continue
        if node.domain or (follow := _FOLLOWED.get(node.op_type)) is None:
            return Mismatch.at(node, "what it does to the positions of a canvas is not known")
        if odd := [v for v in node.inputs if v in found.rows and not found.shape(v)]:
            return Mismatch.at(odd[0], "its shape depends on more than sizes")
        if (why := follow(found, node)) is not None:
            return Mismatch.at(node, why)
    return found


def _sizes(graph: ir.Graph, canvas: ir.Value, batch: int) -> dict[ir.Value, tuple[int, ...]]:
    """The shapes of inputs with so many rows, which all have the symbol of the canvas's."""
    symbols = {d: batch for d in dims_of(canvas)[:1] if not isinstance(d, int)}
    return {
        v: tuple(d if isinstance(d, int) else symbols.get(d, OTHER) for d in dims_of(v))
        for v in inputs_of(graph)
    }


def _each(found: CanvasRows, node: ir.Node) -> str | None:
    """Operands are aligned at their last axes."""
    out = node.outputs[0]
    rank = len(found.shape(out))
    placed = {
        (r.axis + rank - len(found.shape(v)), r.before, r.after)
        for v in node.inputs
        if v is not None and (r := found.rows.get(v)) is not None
    }
    columns = {
        found.columns[v] + rank - len(found.shape(v))
        for v in node.inputs
        if v is not None and v in found.columns
    }
    if len(placed) > 1 or len(columns) > 1:
        return "it meets positions in different places"
    rows = Rows(*placed.pop())
    for place, value in enumerate(node.inputs):
        if value is None or value in found.rows:
            continue
        axis = rows.axis - rank + len(shape := found.shape(value))
        if axis >= 0 and shape[axis] != 1:
            if shape[axis] != found.whole(rows):
                return f"it meets {shape[axis]} rows at {found.whole(rows)}"
            found.tables.append((node, place, rows))
    _note(found, node, rows, columns.pop() if columns else None)
    return None


def _note(found: CanvasRows, node: ir.Node, rows: Rows, columns: int | None = None) -> None:
    for value in node.outputs:
        found.rows[value] = rows
        if columns is not None:
            found.columns[value] = columns


def _product(found: CanvasRows, node: ir.Node) -> str | None:
    """A product of rows with a weight; of queries and keys; of shares and values."""
    one, other = node.inputs
    ranks, rank = [len(found.shape(v)) for v in (one, other)], len(found.shape(node.outputs[0]))
    mine, theirs = (found.rows.get(v) if v is not None else None for v in (one, other))
    columns = found.columns.get(one) if one is not None else None
    if mine is None or min(ranks) < 2:
        return _MIXED
    lifted = Rows(mine.axis + rank - ranks[0], mine.before, mine.after)
    if mine.axis == ranks[0] - 1 or (theirs is None and columns is not None):
        return _MIXED
    if theirs is None:
        across = mine.axis + ranks[1] - ranks[0]
        if 0 <= across < ranks[1] - 2 and found.shape(other)[across] != 1:
            return "each position has a weight of its own"
        _note(found, node, lifted)
        return None
    if mine.axis != ranks[0] - 2:
        return _MIXED
    found.attended.append((node, 1))
    if columns is None and theirs.axis == ranks[1] - 1:
        _note(found, node, lifted, rank - 1)
    elif columns == ranks[0] - 1 and theirs.axis == ranks[1] - 2:
        _note(found, node, lifted)
    else:
        return _MIXED
    return None


def _attention(found: CanvasRows, node: ir.Node) -> str | None:
    """Queries [B, H, N, D] or [B, N, H * D]; keys and values of the canvas, or of a condition."""
    query, *others = node.inputs[:3]
    rows = found.rows.get(query) if query is not None else None
    if rows is None or rows.axis != len(found.shape(query)) - 2:
        return _MIXED
    if any(v is not None for v in node.inputs[3:]) or node.attributes.get_int("is_causal", 0):
        return "it hides positions, or keeps its own"
    for place, value in enumerate(others, 1):
        theirs = found.rows.get(value) if value is not None else None
        if theirs is not None and theirs.axis != len(found.shape(value)) - 2:
            return _MIXED
        if theirs is not None:
            found.attended.append((node, place))
    _note(found, node, rows)
    return None


def _along(found: CanvasRows, node: ir.Node) -> str | None:
    """Over one axis that is not that of positions; a softmax may run over those attended to."""
    value = node.inputs[0]
    assert value is not None
    rows, rank = found.rows[value], len(found.shape(value))
    axis = int(node.attributes.get_int("axis", _ALONG[node.op_type]) or 0) % rank
    if axis == rows.axis or (axis == found.columns.get(value) and node.op_type != "Softmax"):
        return _MIXED
    if node.op_type.startswith("Arg"):
        if not node.attributes.get_int("keepdims", 1) and axis < rows.axis:
            rows = Rows(rows.axis - 1, rows.before, rows.after)
        _note(found, node, rows)
        return None
    _note(found, node, rows, found.columns.get(value))
    return None


def _behind(found: CanvasRows, node: ir.Node) -> str | None:
    """Over an axis and all behind it."""
    value = node.inputs[0]
    if value not in found.rows or value in found.columns:
        return _MIXED
    rows, rank = found.rows[value], len(found.shape(value))
    if rows.axis >= int(node.attributes.get_int("axis", -1) or 0) % rank:
        return _MIXED
    found.rows[node.outputs[0]] = rows  # its mean and deviation are nobody's
    return None if len(node.outputs) == 1 else "its statistics are read"


def _reduced(found: CanvasRows, node: ir.Node) -> str | None:
    """Over axes that are not that of positions."""
    value = node.inputs[0]
    assert value is not None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None or value in found.columns:
        return _MIXED
    rows, rank = found.rows[value], len(found.shape(value))
    over = {int(a) % rank for a in axes.reshape(-1)}
    if rows.axis in over:
        return _MIXED
    gone = 0 if node.attributes.get_int("keepdims", 1) else sum(a < rows.axis for a in over)
    _note(found, node, Rows(rows.axis - gone, rows.before, rows.after))
    return None


def _transposed(found: CanvasRows, node: ir.Node) -> str | None:
    value = node.inputs[0]
    assert value is not None
    rows, rank = found.rows[value], len(found.shape(value))
    order = list(node.attributes.get_ints("perm") or reversed(range(rank)))
    columns = found.columns.get(value)
    moved = Rows(order.index(rows.axis), rows.before, rows.after)
    _note(found, node, moved, None if columns is None else order.index(columns))
    return None


def _reshaped(found: CanvasRows, node: ir.Node) -> str | None:
    """Positions stay an axis of their own, at which as many elements are in front as before."""
    value, out = node.inputs[0], node.outputs[0]
    if value not in found.rows or value in found.columns or not (made := found.shape(out)):
        return _MIXED
    rows, shape = found.rows[value], found.shape(value)
    front = prod(shape[: rows.axis])
    axes = [a for a, d in enumerate(made) if d == shape[rows.axis] and prod(made[:a]) == front]
    if len(axes) != 1:
        return "positions are joined with other axes"
    _note(found, node, Rows(axes[0], rows.before, rows.after))
    if node.op_type == "Reshape":
        if target(found, node) is None:
            return "its shape follows from no size"
        found.reshapes.append(node)
    return None


def target(found: CanvasRows, node: ir.Node) -> list[int] | None:
    """The constant shape of a reshape whatever the batch and the number of positions: 0 keeps an
    axis, -1 takes the rest; None where there is none."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    given, made = ([m.of(v) or () for m in found.measures] for v in (value, out))
    was, now = found.rows[value].axis, found.rows[out].axis
    dims: list[int] = []
    for axis, sizes in enumerate(zip(*made, strict=True)):
        kept = axis < len(given[0]) and sizes == tuple(shape[axis] for shape in given)
        if axis == now:
            dims.append(0 if axis == was else -1)
        elif len(set(sizes)) == 1:
            dims.append(sizes[0])
        else:
            dims.append(0 if kept and axis != was else -1)
    return dims if dims.count(-1) <= 1 else None


def _taken(found: CanvasRows, node: ir.Node) -> str | None:
    """Rows of a table, or of another axis than that of positions."""
    value, indices = node.inputs
    axis = int(node.attributes.get_int("axis", 0) or 0) % max(1, len(found.shape(value)))
    if value not in found.rows and indices in found.rows:
        rows = found.rows[indices]
        _note(found, node, Rows(axis + rows.axis, rows.before, rows.after))
        return None if axis == 0 else "a table is read along an axis that is not its first"
    if indices in found.rows or value in found.columns or value is None:
        return _MIXED
    rows = found.rows[value]
    if axis == rows.axis:
        return "some of the positions are taken"
    gone = 1 - len(found.shape(indices)) if axis < rows.axis else 0
    _note(found, node, Rows(rows.axis - gone, rows.before, rows.after))
    return None


def _split(found: CanvasRows, node: ir.Node) -> str | None:
    value = node.inputs[0]
    if value not in found.rows or value in found.columns:
        return _MIXED
    axis = int(node.attributes.get_int("axis", 0) or 0) % len(found.shape(value))
    if axis == found.rows[value].axis:
        return "some of the positions are taken"
    _note(found, node, found.rows[value])
    return None


def _joined(found: CanvasRows, node: ir.Node) -> str | None:
    """Along another axis, or with fixed rows before and after."""
    if any(v in found.columns for v in node.inputs):
        return _MIXED
    parts = [found.rows.get(v) if v is not None else None for v in node.inputs]
    own = {r for r in parts if r is not None}
    axis = int(node.attributes["axis"].as_int()) % len(found.shape(node.outputs[0]))
    if len(own) != 1:
        return "it joins positions in different places"
    rows = own.pop()
    if axis != rows.axis:
        for place, part in enumerate(parts):
            if part is None:
                found.tables.append((node, place, rows))
        _note(found, node, rows)
        return None
    place = next(n for n, r in enumerate(parts) if r is not None)
    if parts.count(None) + 1 != len(parts):
        return "it joins the positions of a canvas twice"
    longs = [found.shape(v)[axis] for v in node.inputs]
    before, after = sum(longs[:place]), sum(longs[place + 1 :])
    _note(found, node, Rows(axis, rows.before + before, rows.after + after))
    return None


def _sliced(found: CanvasRows, node: ir.Node) -> str | None:
    """Of another axis; or it takes fixed rows away."""
    value, *said = node.inputs
    if value is None or value not in found.rows or value in found.columns:
        return _MIXED
    given = [constant(v) for v in said if v is not None]
    if any(array is None for array in given) or len(given) < len(said):
        return "where it begins and ends is not fixed"
    starts, ends, *more = [array for array in given if array is not None]
    rows, rank = found.rows[value], len(found.shape(value))
    axes = more[0] if more else np.arange(len(starts))
    steps = more[1] if len(more) > 1 else np.ones(len(starts), np.int64)
    places = [n for n, a in enumerate(axes.tolist()) if a % rank == rows.axis]
    if not places:
        _note(found, node, rows)
        return None
    (place,), long = places, found.whole(rows)
    taken = slice(int(starts[place]), int(ends[place]), int(steps[place]))
    begin, end, step = taken.indices(long)
    if step != 1 or begin > rows.before or end < rows.before + found.positions:
        return "some of the positions are taken"
    left = Rows(rows.axis, rows.before - begin, end - rows.before - found.positions)
    found.cuts.append((node, place))
    _note(found, node, left)
    return None


_FOLLOWED: Mapping[str, Callable[[CanvasRows, ir.Node], str | None]] = {
    **dict.fromkeys(_EACH, _each), **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_BEHIND, _behind), "MatMul": _product, "Attention": _attention,
    **{f"Reduce{kind}": _reduced for kind in ("Mean", "Sum", "Max", "Min", "SumSquare", "L2")},
    "Transpose": _transposed, "Gather": _taken, "Split": _split, "Concat": _joined,
    "Slice": _sliced,
    **dict.fromkeys(("Reshape", "Unsqueeze", "Squeeze", "Flatten"), _reshaped),
}  # fmt: skip
"""By operator, what follows the rows through a node, and says why it cannot."""
