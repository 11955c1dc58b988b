"""Lifting: the graph's own weight-free formula, from its ranges onto query and key positions.

Every axis of a raw value has a label: b (batch), h (heads), q and k (positions of queries and
keys), bh (both in one) or 1. What has at most one axis of positions is told by its values at all
lengths; what has both is written again by its operators, over the lifted operands.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.canonical.lengths import SQUARE, Lengths
from graftline.passes.canonical.mask.lift_rules import NO_RULE, by_operator, look_up
from graftline.passes.canonical.mask.lines import Line, Rows, line_of, steps_of
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.formula import number
from graftline.passes.graph.meaning import constant, type_of
from graftline.passes.graph.mismatch import Mismatch

Axes = tuple[str, ...]
Lifted = ir.Value | Mismatch
"""A value of the formula, or why there is none and where."""
_TABLE_BYTES = 1 << 24


class Lift:
    """Writes values of one graph as formulas, in a graph of its own.

    `zero` is a value taken as 0: the scores a bias is added to. `rows` is how many positions a
    table of values per position holds. `length` is the leaf for what depends on N. Of the `hidden`
    activations only the operators are followed, never the values.
    """

    def __init__(
        self, lengths: Lengths, rows: int, hidden: set[ir.Value], zero: ir.Value | None
    ) -> None:
        self.lengths, self.rows, self.hidden, self.zero = lengths, rows, hidden, zero
        self.emit = Emit(ir.Graph([], [], nodes=[], name="formula"), "canonicalize")
        self.query, self.key = ir.Value(name="query"), ir.Value(name="key")
        self.length = ir.Value(name="length")
        self.made: dict[tuple[ir.Value, Axes], Lifted] = {}
        self.tables = False
        """Whether a table by position was made, which holds `rows` positions and no more."""

    def value(self, value: ir.Value, axes: Axes) -> Lifted:
        """The lifted value. Raises CannotEvaluate."""
        shape = self.lengths.measures.shape(value)
        one = [self.shapes_at(value, i) == 1 for i in range(len(shape))]
        axes = tuple("1" if o else a for o, a in zip(one, axes, strict=True))
        if (value, axes) not in self.made:
            self.made[value, axes] = self._lift(value, axes)
        return self.made[value, axes]

    def shapes_at(self, value: ir.Value, axis: int) -> int | tuple[int, ...]:
        """The size of an axis: a number, or its sizes as batch and length vary."""
        shapes = [m.of(value) for m in self.lengths.measures.each]
        sizes = tuple(s[axis] for s in shapes if s is not None)
        return sizes[0] if len(set(sizes)) == 1 else sizes

    def constant(self, array: Array) -> ir.Value:
        """A number or an array of the formula."""
        return number(self.emit, np.asarray(array))

    def choose(
        self, condition: ir.Value, yes: ir.Value, no: ir.Value, dtype: ir.DataType | None
    ) -> ir.Value:
        """Where; for truths in logic, because ONNX Runtime has no Where over them."""
        if dtype != ir.DataType.BOOL:
            return self.emit.op("Where", [condition, yes, no])
        one, other = _truth(yes), _truth(no)
        if one and other is False:
            return condition
        if one:
            return self.emit.op("Or", [condition, no])
        without = self.emit.op("And", [self.emit.op("Not", [condition]), no])
        if one is False:
            return without
        return self.emit.op("Or", [self.emit.op("And", [condition, yes]), without])

    def attention_mask(self, mask: ir.Value | None, causal: bool) -> Lifted:
        """The mask of an Attention node, bool or additive, and what it says itself."""
        seen = self.emit.op("LessOrEqual", [self.key, self.query])
        if mask is None:
            return seen if causal else self.constant(np.ones((), np.bool_))
        rank = len(self.lengths.measures.shape(mask))
        made = self.value(mask, ("b", "h", "q", "k")[4 - rank :])
        if not causal or isinstance(made, Mismatch):
            return made
        if mask.dtype == ir.DataType.BOOL:
            return self.emit.op("And", [seen, made])
        lowest = np.asarray(-np.inf, type_of(mask))
        return self.emit.op("Where", [seen, made, self.constant(lowest)])

    def _lift(self, value: ir.Value, axes: Axes) -> Lifted:
        if value is self.zero:
            return self.constant(np.zeros((), type_of(value)))
        if "q" in axes and "k" in axes:
            return self._square(value, axes)
        return self._row(value, axes)

    # values of one position, told by what they are

    def _row(self, value: ir.Value, axes: Axes) -> Lifted:
        if value in self.hidden:
            return Mismatch.at(value, "a mask depends on activations")
        rows = self._rows(value, axes)
        if isinstance(rows, Mismatch):
            return rows
        of = next((a for a in axes if a in ("q", "k")), "")
        line = line_of(rows, 0.0)
        if line is not None:
            return self._line(line, of)
        made = self._by_structure(value, axes)
        if not isinstance(made, Mismatch):
            return made
        line = line_of(rows, 1e-6)
        if line is not None:
            return self._line(line, of)
        return self._table(value, rows, axes, of)

    def _rows(self, value: ir.Value, axes: Axes) -> Rows | Mismatch:
        """[heads or 1, positions or 1] at every length; the same for all rows of the batch."""
        out: Rows = {}
        for length, array in self.lengths.rows(value).items():
            batch = self.lengths.batch(length)
            ordered = self._ordered(array, axes, batch, value)
            if isinstance(ordered, Mismatch):
                return ordered
            out[length] = ordered[:, :, 0]
        return out

    def _ordered(
        self, array: Array, axes: Axes, batch: int, value: ir.Value
    ) -> Array | Mismatch:
        """[heads or 1, first, second] for axes in any order; first is q, or k where it is alone."""
        shape, labels = list[int](), list[str]()
        for size, axis in zip(array.shape, axes, strict=True):
            if axis == "bh":
                shape += [batch, size // batch]
                labels += ["b", "h"]
            elif axis != "1":
                shape.append(size)
                labels.append(axis)
        whole = array.reshape(shape)
        order = [a for a in ("b", "h", "q", "k") if a in labels]
        whole = whole.transpose([labels.index(a) for a in order])
        if "b" in order:
            if not _same(whole, np.broadcast_to(whole[:1], whole.shape)):
                return Mismatch.at(value, "the mask differs between rows of the batch")
            whole = whole[0]
        if "h" not in order:
            whole = whole[None]
        return whole.reshape(*whole.shape, *([1] * (3 - whole.ndim)))

    def _line(self, line: Line, of: str) -> ir.Value:
        """start + slope * position + change * length, in the type of the values."""
        if not line.slope.any() and not line.change.any():
            return self.constant(_per_head(line.start, line.dtype))
        whole = all((v == np.round(v)).all() for v in (line.start, line.slope, line.change))
        dtype = np.dtype(np.int64) if whole else line.dtype
        parts: list[ir.Value] = []
        for leaf, factor in ((self.leaf(of), line.slope), (self.length, line.change)):
            if factor.any():
                x = leaf if whole else self._cast(leaf, dtype)
                same = (factor == 1).all()
                factors = _per_head(factor, dtype)
                parts.append(x if same else self.emit.op("Mul", [x, self.constant(factors)]))
        total = parts[0] if len(parts) == 1 else self.emit.op("Add", parts)
        if line.start.any():
            total = self.emit.op("Add", [total, self.constant(_per_head(line.start, dtype))])
        return total if dtype == line.dtype else self._cast(total, line.dtype)

    def _cast(self, value: ir.Value, dtype: np.dtype[np.generic]) -> ir.Value:
        return self.emit.op("Cast", [value], to=ir.DataType.from_numpy(dtype))

    def leaf(self, of: str) -> ir.Value:
        """Positions of queries (q) or of keys (k)."""
        return self.query if of == "q" else self.key

    def _table(self, value: ir.Value, rows: Rows, axes: Axes, of: str) -> Lifted:
        """A value per position that no formula was found for, over all positions there are."""
        longest = rows[max(rows)]
        alike = all(_same(r, longest[:, : r.shape[1]]) for r in rows.values())
        if not of or not alike:
            why = "a mask depends on how many tokens are fed, not only on positions"
            return Mismatch.at(value, why)
        if self.lengths.is_square(value) and self.rows**2 > SQUARE:
            why = "a value per position cannot be tabulated: it is computed from N x N values"
            return Mismatch.at(value, why)
        count = self.rows
        if self.lengths.stops is not None or longest.shape[1] < max(rows):
            count = min(count, longest.shape[1])  # it comes from a table of so many rows
        whole = self.lengths.measures.world(1, count).value(value)
        ordered = self._ordered(whole, axes, 1, value)
        if isinstance(ordered, Mismatch):
            return ordered
        table = ordered[:, :, 0]
        if not all(_same(r[:, :count], table[:, : r.shape[1]]) for r in rows.values()):
            return Mismatch.at(value, "a value per position changes with the length")
        self.tables, self.rows = True, count
        columns = table[0] if len(table) == 1 else np.ascontiguousarray(table.T)
        return look_up(self, self.constant(columns), self.leaf(of), count, ir.DataType.INT64)

    # values of both positions, written again

    def _square(self, value: ir.Value, axes: Axes) -> Lifted:
        made = self._by_structure(value, axes)
        if not isinstance(made, Mismatch) or value in self.hidden:
            return made
        other = self._by_distance(value, axes)
        return made if isinstance(other, Mismatch) else other

    def _by_structure(self, value: ir.Value, axes: Axes) -> Lifted:
        """By the operator that makes the value."""
        node = value.producer()
        if node is None:
            return self._buffer(value, axes)
        if node.domain or value is not node.outputs[0]:
            return Mismatch.at(node, NO_RULE)
        return by_operator(self, node, axes)

    def operand(self, value: ir.Value | None, axes: Axes) -> Lifted:
        """An operand that is broadcast to `axes`."""
        assert value is not None
        rank = len(self.lengths.measures.shape(value))
        return self.value(value, axes[len(axes) - rank :])

    # values of both positions, told by what they are

    def _buffer(self, value: ir.Value, axes: Axes) -> Lifted:
        """A constant [P, P]: steps in the distance, or a table of all pairs."""
        tensor = value.const_value
        if tensor is None or not {"q", "k"} <= set(axes):
            return Mismatch.at(value, "is no number for every pair of positions")
        whole = self._ordered(tensor.numpy(), axes, 1, value)
        made = whole if isinstance(whole, Mismatch) else self._steps({whole.shape[1]: whole}, value)
        if isinstance(whole, Mismatch) or not isinstance(made, Mismatch):
            return made
        if whole.nbytes > _TABLE_BYTES:
            return made
        width = self.constant(np.asarray(whole.shape[2], np.int64))
        index = self.emit.op("Add", [self.emit.op("Mul", [self.query, width]), self.key])
        self.tables, self.rows = True, min(self.rows, *whole.shape[1:])
        flat = whole.reshape(whole.shape[0], -1)
        table = flat[0] if len(flat) == 1 else np.ascontiguousarray(flat.T)
        return look_up(self, self.constant(table), index, len(table), ir.DataType.INT64)

    def _by_distance(self, value: ir.Value, axes: Axes) -> Lifted:
        """What depends on the distance alone, told by its values at every length."""
        if max(self.lengths.each) ** 2 > 4 * SQUARE:
            return Mismatch.at(value, "its constants are too large to compare all pairs of rows")
        found: Rows = {}
        for length, array in self.lengths.rows(value, 4 * SQUARE).items():
            ordered = self._ordered(array, axes, self.lengths.batch(length), value)
            if isinstance(ordered, Mismatch):
                return ordered
            found[length] = ordered
        return self._steps(found, value)

    def _steps(self, found: Rows, value: ir.Value) -> Lifted:
        """Steps in the distance."""
        steps = steps_of(found)
        if steps is None:
            return Mismatch.at(value, "does not depend on the distance of positions alone")
        distance = self.emit.op("Sub", [self.query, self.key])
        made = self.constant(_per_head(steps[0][1], steps[0][1].dtype))
        for start, values in steps[1:]:
            reached = self.emit.op(
                "GreaterOrEqual", [distance, self.constant(np.asarray(start, np.int64))]
            )
            piece = self.constant(_per_head(values, values.dtype))
            made = self.choose(reached, piece, made, ir.DataType.from_numpy(values.dtype))
        return made


def _truth(value: ir.Value) -> bool | None:
    """What a constant says of all pairs; None for what differs."""
    array = constant(value)
    return bool(array.reshape(())) if array is not None and array.size == 1 else None


def _per_head(values: Array, dtype: np.dtype[np.generic]) -> Array:
    """A number, or [1, heads, 1, 1]."""
    flat = values.reshape(-1).astype(dtype)
    return flat[:1].reshape(()) if (flat == flat[0]).all() else flat.reshape(1, -1, 1, 1)


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
