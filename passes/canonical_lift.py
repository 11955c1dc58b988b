"""Lifting: the graph's own weight-free formula, from its ranges onto query and key positions.

Every axis of a raw value has a label: b (batch), h (heads), q and k (positions of queries and
keys), bh (both in one) or 1. What has at most one axis of positions is told by its values at all
lengths; what has both is written again by its operators, over the lifted operands.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical_lengths import SQUARE, Lengths
from graftline.passes.canonical_lines import Line, Rows, line_of, steps_of
from graftline.passes.emit import Emit
from graftline.passes.formula import number
from graftline.passes.meaning import constant, evaluate_node, label, label_value, sizes_of

Axes = tuple[str, ...]
_OPERATORS = """
    Abs Add And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Cos Div Elu Equal
    Erf Exp Floor Greater GreaterOrEqual HardSigmoid Identity IsInf IsNaN LeakyRelu Less LessOrEqual
    Log Max Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Sin Softplus Sqrt Sub Sum
    Tanh Where Xor
"""
_ELEMENTWISE = frozenset(_OPERATORS.split())
_KEEPS_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_TABLE_BYTES = 1 << 24


class Lift:
    """Writes values of one graph as formulas, in a graph of its own.

    `zero` is a value taken as 0: the scores a bias is added to. `rows` is how many positions a
    table of values per position holds. `length` is the leaf for what depends on N.
    """

    def __init__(self, lengths: Lengths, rows: int, zero: ir.Value | None) -> None:
        self.lengths, self.rows, self.zero = lengths, rows, zero
        self.emit = Emit(ir.Graph([], [], nodes=[], name="formula"), "canonicalize")
        self.query, self.key = ir.Value(name="query"), ir.Value(name="key")
        self.length = ir.Value(name="length")
        self.made: dict[tuple[ir.Value, Axes], ir.Value] = {}
        self.tables = False
        """Whether a table by position was made, which holds `rows` positions and no more."""

    def value(self, value: ir.Value, axes: Axes) -> ir.Value:
        """The lifted value. Raises NotApplicable with the nodes, or CannotEvaluate."""
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

    def attention_mask(self, mask: ir.Value | None, causal: bool) -> ir.Value:
        """The mask of an Attention node, bool or additive, and what it says itself."""
        seen = self.emit.op("LessOrEqual", [self.key, self.query])
        if mask is None:
            return seen if causal else self.constant(np.ones((), np.bool_))
        rank = len(self.lengths.measures.shape(mask))
        made = self.value(mask, ("b", "h", "q", "k")[4 - rank :])
        if not causal:
            return made
        if mask.dtype == ir.DataType.BOOL:
            return self.emit.op("And", [seen, made])
        lowest = np.asarray(-np.inf, (mask.dtype or ir.DataType.FLOAT).numpy())
        return self.emit.op("Where", [seen, made, self.constant(lowest)])

    def _lift(self, value: ir.Value, axes: Axes) -> ir.Value:
        if value is self.zero:
            return self.constant(np.zeros((), (value.dtype or ir.DataType.FLOAT).numpy()))
        if "q" in axes and "k" in axes:
            return self._square(value, axes)
        return self._row(value, axes)

    # values of one position, told by what they are

    def _row(self, value: ir.Value, axes: Axes) -> ir.Value:
        rows = self._rows(value, axes)
        of = next((a for a in axes if a in ("q", "k")), "")
        line = line_of(rows, 0.0)
        if line is not None:
            return self._line(line, of)
        made = self._by_structure(value, axes)
        if made is not None:
            return made
        line = line_of(rows, 1e-6)
        if line is not None:
            return self._line(line, of)
        return self._table(value, rows, axes, of)

    def _rows(self, value: ir.Value, axes: Axes) -> Rows:
        """[heads or 1, positions or 1] at every length; the same for all rows of the batch."""
        out: Rows = {}
        for length, array in self.lengths.rows(value).items():
            batch = self.lengths.batch(length)
            out[length] = self._ordered(array, axes, batch, value)[:, :, 0]
        return out

    def _ordered(self, array: Array, axes: Axes, batch: int, value: ir.Value) -> Array:
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
                raise NotApplicable(
                    "the mask differs between rows of the batch", [label_value(value)]
                )
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
        for leaf, factor in ((self._leaf(of), line.slope), (self.length, line.change)):
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

    def _leaf(self, of: str) -> ir.Value:
        return self.query if of == "q" else self.key

    def _table(self, value: ir.Value, rows: Rows, axes: Axes, of: str) -> ir.Value:
        """A value per position that no formula was found for, over all positions there are."""
        longest = rows[max(rows)]
        alike = all(_same(r, longest[:, : r.shape[1]]) for r in rows.values())
        if not of or not alike:
            raise NotApplicable(
                "a mask depends on how many tokens are fed, not only on positions",
                [label_value(value)],
            )
        if self.lengths.is_square(value) and self.rows**2 > SQUARE:
            raise NotApplicable(
                "a value per position cannot be tabulated: N x N values are behind it",
                [label_value(value)],
            )
        count = self.rows
        if self.lengths.stops is not None:
            count = min(count, longest.shape[1])
        whole = self.lengths.measures.world(1, count).value(value)
        table = self._ordered(whole, axes, 1, value)[:, :, 0]
        if not all(_same(r[:, :count], table[:, : r.shape[1]]) for r in rows.values()):
            raise NotApplicable(
                "a value per position changes with the length", [label_value(value)]
            )
        self.tables = True
        return self._look_up(self.constant(table.T), self._leaf(of), 0)

    # values of both positions, written again

    def _square(self, value: ir.Value, axes: Axes) -> ir.Value:
        reason: NotApplicable | None = None
        try:
            made = self._by_structure(value, axes)
            if made is not None:
                return made
        except NotApplicable as error:
            reason = error
        made = self._by_distance(value, axes)
        if made is None:
            raise reason or NotApplicable(
                "a mask is written in a way that cannot be followed", [label_value(value)]
            )
        return made

    def _by_structure(self, value: ir.Value, axes: Axes) -> ir.Value | None:
        """By the operator that makes the value; None where there is no rule for it."""
        node = value.producer()
        if node is None or node.domain or value is not node.outputs[0]:
            return self._buffer(value, axes) if node is None else None
        if node.op_type in _ELEMENTWISE:
            return self._elementwise(node, axes)
        if node.op_type in _KEEPS_ORDER:
            return self._reordered(node, axes)
        rules: dict[str, Callable[[ir.Node, Axes], ir.Value | None]] = {
            "Expand": self._expanded, "Tile": self._expanded, "Transpose": self._transposed,
            "Trilu": self._triangle, "Gather": self._gathered, "Slice": self._sliced,
            "MatMul": self._outer, "ConstantOfShape": self._filled,
        }  # fmt: skip
        rule = rules.get(node.op_type)
        return rule(node, axes) if rule is not None else None

    def _operand(self, value: ir.Value | None, axes: Axes) -> ir.Value:
        """An operand that is broadcast to `axes`."""
        assert value is not None
        rank = len(self.lengths.measures.shape(value))
        return self.value(value, axes[len(axes) - rank :])

    def _elementwise(self, node: ir.Node, axes: Axes) -> ir.Value:
        inputs = [None if v is None else self._operand(v, axes) for v in node.inputs]
        attributes = {name: a.value for name, a in node.attributes.items()}
        arrays = [None if v is None else constant(v) for v in inputs]
        if all(a is not None for a, v in zip(arrays, inputs, strict=True) if v is not None):
            return self.constant(evaluate_node(node, arrays, 24)[0])
        kept = [
            v for v, a in zip(inputs, arrays, strict=True) if not _says_nothing(node.op_type, a)
        ]
        if len(kept) == 1 < len(inputs) and kept[0] is not None:
            return kept[0]
        return self.emit.op(node.op_type, inputs, **attributes)

    def _expanded(self, node: ir.Node, axes: Axes) -> ir.Value | None:
        source = node.inputs[0]
        assert source is not None
        rank = len(self.lengths.measures.shape(source))
        sizes = [self.shapes_at(source, i) for i in range(rank)]
        now = [self.shapes_at(node.outputs[0], len(axes) - rank + i) for i in range(rank)]
        if any(s not in (1, n) for s, n in zip(sizes, now, strict=True)):
            return None
        return self._operand(source, axes)

    def _transposed(self, node: ir.Node, axes: Axes) -> ir.Value:
        perm = node.attributes.get_ints("perm", None) or tuple(reversed(range(len(axes))))
        before = ["1"] * len(axes)
        for at, source in enumerate(perm):
            before[source] = axes[at]
        return self._operand(node.inputs[0], tuple(before))

    def _reordered(self, node: ir.Node, axes: Axes) -> ir.Value | None:
        """Axes keep their order: sizes of one come and go, batch and heads are joined or split."""
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        left = [(a, self.shapes_at(out, i)) for i, a in enumerate(axes) if a != "1"]
        rank = len(self.lengths.measures.shape(source))
        sizes = [self.shapes_at(source, i) for i in range(rank)]
        batch = self._batches()
        before: list[str] = []
        for size in sizes:
            if size == 1:
                before.append("1")
            elif left and left[0][1] == size:
                before.append(left.pop(0)[0])
            elif [a for a, _ in left[:2]] == ["b", "h"]:
                left = left[2:]
                before.append("bh")
            elif left and left[0][0] == "bh" and size == batch:
                left[0] = ("h", size)
                before.append("b")
            elif left and left[0][0] == "h" and before[-1:] == ["b"]:
                left.pop(0)
                before.append("h")
            else:
                return None
        return self._operand(source, tuple(before)) if not left else None

    def _batches(self) -> int | tuple[int, ...]:
        return self.shapes_at(self.lengths.measures.tokens, 0)

    def _filled(self, node: ir.Node, axes: Axes) -> ir.Value:
        """One number everywhere, whatever the shape."""
        held = node.attributes.get("value")
        tensor = held.as_tensor().numpy() if held is not None else np.zeros(1, np.float32)
        return self.constant(tensor.reshape(()))

    def _triangle(self, node: ir.Node, axes: Axes) -> ir.Value | None:
        """Trilu: what lies on one side of a diagonal, else zero."""
        shift = constant(node.inputs[1]) if len(node.inputs) > 1 else np.zeros((), np.int64)
        if set(axes[-2:]) != {"q", "k"} or shift is None:
            return None
        source = self._operand(node.inputs[0], axes)
        row, column = self._leaf(axes[-2]), self._leaf(axes[-1])
        if int(shift.reshape(())):
            row = self.emit.op("Add", [row, self.constant(shift.reshape(()).astype(np.int64))])
        upper = node.attributes.get_int("upper", 1)
        kept = self.emit.op("GreaterOrEqual" if upper else "LessOrEqual", [column, row])
        dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        if dtype is None:
            raise NotApplicable("a triangle of unknown type", [label(node)])
        nothing = self.constant(np.zeros((), dtype.numpy()))
        return self.emit.op("Where", [kept, source, nothing])

    def _gathered(self, node: ir.Node, axes: Axes) -> ir.Value | None:
        """A table of numbers, perhaps one column per head, read by lifted indices."""
        data, at = node.inputs[0], node.inputs[1]
        if data is None or at is None or self.lengths.measures.dims(data) is None:
            return None
        shape = self.lengths.measures.shape(data)
        if "N" in (self.lengths.measures.dims(data) or []):
            return None
        axis = (node.attributes.get_int("axis", 0) or 0) % len(shape)
        rank = len(self.lengths.measures.shape(at))
        rest = axes[:axis] + axes[axis + rank :]
        if any(a not in ("h", "1") for a in rest) or rest.count("h") > 1:
            return None
        index = self._operand(at, axes[axis : axis + rank])
        kept = [axis] + [i for i in range(len(shape)) if i != axis and shape[i] != 1]
        table = self._weight(data, shape, kept)
        return self._look_up(table, index, shape[axis])

    def _weight(self, data: ir.Value, shape: tuple[int, ...], kept: list[int]) -> ir.Value:
        """A learned table [rows] or [rows, heads]: the checkpoint's own tensor where it fits."""
        order = [*kept, *(i for i in range(len(shape)) if i not in kept)]
        if data.const_value is None or order != list(range(len(shape))) or len(shape) != len(kept):
            whole = self.lengths.world(_few(self.lengths)).value(data)
            return self.constant(whole.transpose(order).reshape([shape[i] for i in kept]))
        name = data.name or ""
        held = self.emit.graph.initializers.get(name)
        return held or self.emit.initializer(name, data.const_value)

    def _look_up(self, table: ir.Value, index: ir.Value, size: int) -> ir.Value:
        """table[index] as [., heads or 1, ., .], the heads of a table being its second axis."""
        found = constant(index)
        if found is not None and found.ndim < 4:
            index = self.constant(found.reshape(1, 1, 1, 1))
        read = self.emit.op("Gather", [table, index], axis=0)
        tensor = table.const_value
        assert tensor is not None
        if len(sizes_of(tensor)) == 1:
            return read
        flat = self.emit.op("Squeeze", [read, self.constant(np.asarray([1], np.int64))])
        return self.emit.op("Transpose", [flat], perm=[0, 3, 1, 2])

    def _sliced(self, node: ir.Node, axes: Axes) -> ir.Value | None:
        """The first positions of something longer."""
        operands = [self.lengths.rows(v) if v is not None else {} for v in node.inputs[1:]]
        starts = [a for a in operands[0].values()]
        steps = list(operands[3].values()) if len(operands) > 3 else []
        if any(a.any() for a in starts) or any((a != 1).any() for a in steps):
            return None
        for i, axis in enumerate(axes):
            kept = self.shapes_at(node.outputs[0], i) == self.shapes_at(_first(node), i)
            if axis not in ("q", "k") and not kept:
                return None
        return self._operand(node.inputs[0], axes)

    def _outer(self, node: ir.Node, axes: Axes) -> ir.Value | None:
        """A column times a row."""
        left, right = node.inputs[0], node.inputs[1]
        if left is None or right is None:
            return None
        shape = self.lengths.measures.shape(left)
        if len(shape) < 2 or shape[-1] != 1:
            return None
        column = self._operand(left, (*axes[:-1], "1"))
        row = self._operand(right, (*axes[:-2], "1", axes[-1]))
        return self.emit.op("Mul", [column, row])

    # values of both positions, told by what they are

    def _buffer(self, value: ir.Value, axes: Axes) -> ir.Value | None:
        """A constant [P, P]: steps in the distance, or a table of all pairs."""
        tensor = value.const_value
        if tensor is None or not {"q", "k"} <= set(axes):
            return None
        whole = self._ordered(tensor.numpy(), axes, 1, value)
        made = self._distance_steps({whole.shape[1]: whole})
        if made is not None or whole.nbytes > _TABLE_BYTES:
            return made
        width = self.constant(np.asarray(whole.shape[2], np.int64))
        index = self.emit.op("Add", [self.emit.op("Mul", [self.query, width]), self.key])
        self.tables, self.rows = True, min(self.rows, *whole.shape[1:])
        flat = whole.reshape(whole.shape[0], -1)
        table = flat[0] if len(flat) == 1 else np.ascontiguousarray(flat.T)
        return self._look_up(self.constant(table), index, whole.shape[1])

    def _by_distance(self, value: ir.Value, axes: Axes) -> ir.Value | None:
        """What depends on the distance alone, told by its values at every length."""
        if max(self.lengths.each) ** 2 > 4 * SQUARE:
            return None
        found: Rows = {}
        for length, array in self.lengths.rows(value, 4 * SQUARE).items():
            batch = self.lengths.batch(length)
            found[length] = self._ordered(array, axes, batch, value)
        return self._distance_steps(found)

    def _distance_steps(self, found: Rows) -> ir.Value | None:
        steps = steps_of(found)
        if steps is None:
            return None
        distance = self.emit.op("Sub", [self.query, self.key])
        made = self.constant(_per_head(steps[0][1], steps[0][1].dtype))
        for start, values in steps[1:]:
            reached = self.emit.op(
                "GreaterOrEqual", [distance, self.constant(np.asarray(start, np.int64))]
            )
            piece = self.constant(_per_head(values, values.dtype))
            made = self.emit.op("Where", [reached, piece, made])
        return made


def _says_nothing(op_type: str, operand: Array | None) -> bool:
    """Whether an operand leaves the other as it is: true of And, zero of Add."""
    if operand is None or operand.size != 1:
        return False
    return (op_type == "And" and bool(operand)) or (op_type == "Add" and not operand.any())


def _per_head(values: Array, dtype: np.dtype[np.generic]) -> Array:
    """A number, or [1, heads, 1, 1]."""
    flat = values.reshape(-1).astype(dtype)
    return flat[:1].reshape(()) if (flat == flat[0]).all() else flat.reshape(1, -1, 1, 1)


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _few(lengths: Lengths) -> int:
    return lengths.each[0]


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
