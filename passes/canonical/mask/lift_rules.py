"""Operators of masks, written again over lifted operands: one rule each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.graph.meaning import constant, evaluate_node, label, sizes_of

if TYPE_CHECKING:
    from graftline.passes.canonical.mask.lift import Axes, Lift

_OPERATORS = """
    Abs Add And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Cos Div Elu Equal
    Erf Exp Floor Greater GreaterOrEqual HardSigmoid Identity IsInf IsNaN LeakyRelu Less LessOrEqual
    Log Max Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Sin Softplus Sqrt Sub Sum
    Tanh Where Xor
"""
_ELEMENTWISE = frozenset(_OPERATORS.split())
_KEEPS_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def by_operator(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    """The first output of a node, lifted; None where there is no rule for it."""
    if node.op_type in _ELEMENTWISE:
        return _elementwise(lift, node, axes)
    if node.op_type in _KEEPS_ORDER:
        return _reordered(lift, node, axes)
    rule = _RULES.get(node.op_type)
    return rule(lift, node, axes) if rule is not None else None


def _elementwise(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value:
    inputs = [None if v is None else lift.operand(v, axes) for v in node.inputs]
    attributes = {name: a.value for name, a in node.attributes.items()}
    arrays = [None if v is None else constant(v) for v in inputs]
    if all(a is not None for a, v in zip(arrays, inputs, strict=True) if v is not None):
        return lift.constant(evaluate_node(node, arrays, 24)[0])
    kept = [
        v for v, a in zip(inputs, arrays, strict=True) if not _says_nothing(node.op_type, a)
    ]
    if len(kept) == 1 < len(inputs) and kept[0] is not None:
        return kept[0]
    if node.op_type == "Where":
        condition, yes, no = (v for v in inputs if v is not None)
        return lift.choose(condition, yes, no, node.outputs[0].dtype)
    return lift.emit.op(node.op_type, inputs, **attributes)


def _expanded(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    source = node.inputs[0]
    assert source is not None
    rank = len(lift.lengths.measures.shape(source))
    sizes = [lift.shapes_at(source, i) for i in range(rank)]
    now = [lift.shapes_at(node.outputs[0], len(axes) - rank + i) for i in range(rank)]
    if any(s not in (1, n) for s, n in zip(sizes, now, strict=True)):
        return None
    return lift.operand(source, axes)


def _transposed(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value:
    perm = node.attributes.get_ints("perm", None) or tuple(reversed(range(len(axes))))
    before = ["1"] * len(axes)
    for at, source in enumerate(perm):
        before[source] = axes[at]
    return lift.operand(node.inputs[0], tuple(before))


def _reordered(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    """Axes keep their order: sizes of one come and go, batch and heads are joined or split."""
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    left = [(a, lift.shapes_at(out, i)) for i, a in enumerate(axes) if a != "1"]
    rank = len(lift.lengths.measures.shape(source))
    sizes = [lift.shapes_at(source, i) for i in range(rank)]
    batch = _batches(lift)
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
    return lift.operand(source, tuple(before)) if not left else None


def _batches(lift: Lift) -> int | tuple[int, ...]:
    return lift.shapes_at(lift.lengths.measures.tokens, 0)


def _filled(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value:
    """One number everywhere, whatever the shape."""
    held = node.attributes.get("value")
    tensor = held.as_tensor().numpy() if held is not None else np.zeros(1, np.float32)
    return lift.constant(tensor.reshape(()))


def _triangle(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    """Trilu: what lies on one side of a diagonal, else zero."""
    shift = constant(node.inputs[1]) if len(node.inputs) > 1 else np.zeros((), np.int64)
    if set(axes[-2:]) != {"q", "k"} or shift is None:
        return None
    source = lift.operand(node.inputs[0], axes)
    row, column = lift.leaf(axes[-2]), lift.leaf(axes[-1])
    if int(shift.reshape(())):
        row = lift.emit.op("Add", [row, lift.constant(shift.reshape(()).astype(np.int64))])
    upper = node.attributes.get_int("upper", 1)
    kept = lift.emit.op("GreaterOrEqual" if upper else "LessOrEqual", [column, row])
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    if dtype is None:
        raise NotApplicable("a triangle of unknown type", [label(node)])
    nothing = lift.constant(np.zeros((), dtype.numpy()))
    return lift.choose(kept, source, nothing, dtype)


def _gathered(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    """A table of numbers, perhaps one column per head, read by lifted indices."""
    data, at = node.inputs[0], node.inputs[1]
    if data is None or at is None or lift.lengths.measures.dims(data) is None:
        return None
    shape = lift.lengths.measures.shape(data)
    if "N" in (lift.lengths.measures.dims(data) or []):
        return None
    axis = (node.attributes.get_int("axis", 0) or 0) % len(shape)
    rank = len(lift.lengths.measures.shape(at))
    rest = axes[:axis] + axes[axis + rank :]
    if any(a not in ("h", "1") for a in rest) or rest.count("h") > 1:
        return None
    index = lift.operand(at, axes[axis : axis + rank])
    kept = [axis] + [i for i in range(len(shape)) if i != axis and shape[i] != 1]
    table = _weight(lift, data, shape, kept)
    return look_up(lift, table, index, shape[axis], at.dtype or ir.DataType.INT64)


def _weight(lift: Lift, data: ir.Value, shape: tuple[int, ...], kept: list[int]) -> ir.Value:
    """A learned table [rows] or [rows, heads]: the checkpoint's own tensor where it fits."""
    order = [*kept, *(i for i in range(len(shape)) if i not in kept)]
    if data.const_value is None or order != list(range(len(shape))) or len(shape) != len(kept):
        whole = lift.lengths.world(lift.lengths.each[0]).value(data)
        return lift.constant(whole.transpose(order).reshape([shape[i] for i in kept]))
    name = data.name or ""
    held = lift.emit.graph.initializers.get(name)
    return held or lift.emit.initializer(name, data.const_value)


def look_up(
    lift: Lift, table: ir.Value, index: ir.Value, rows: int, dtype: ir.DataType
) -> ir.Value:
    """table[index] as [., heads or 1, ., .], the heads of a table being its second axis.

    Slots that hold nothing have positions beyond the table: they read its last row, unseen.
    """
    found = constant(index)
    if found is not None and found.ndim < 4:
        index = lift.constant(found.reshape(1, 1, 1, 1))
    last, first = (np.asarray(n, dtype.numpy()) for n in (rows - 1, -rows))
    index = lift.emit.op("Min", [index, lift.constant(last)])
    index = lift.emit.op("Max", [index, lift.constant(first)])
    read = lift.emit.op("Gather", [table, index], axis=0)
    tensor = table.const_value
    assert tensor is not None
    if len(sizes_of(tensor)) == 1:
        return read
    flat = lift.emit.op("Squeeze", [read, lift.constant(np.asarray([1], np.int64))])
    return lift.emit.op("Transpose", [flat], perm=[0, 3, 1, 2])


def _sliced(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    """The first positions of something longer."""
    operands = [lift.lengths.rows(v) if v is not None else {} for v in node.inputs[1:]]
    starts = [a for a in operands[0].values()]
    steps = list(operands[3].values()) if len(operands) > 3 else []
    if any(a.any() for a in starts) or any((a != 1).any() for a in steps):
        return None
    for i, axis in enumerate(axes):
        kept = lift.shapes_at(node.outputs[0], i) == lift.shapes_at(_first(node), i)
        if axis not in ("q", "k") and not kept:
            return None
    return lift.operand(node.inputs[0], axes)


def _outer(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value | None:
    """A column times a row."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return None
    shape = lift.lengths.measures.shape(left)
    if len(shape) < 2 or shape[-1] != 1:
        return None
    column = lift.operand(left, (*axes[:-1], "1"))
    row = lift.operand(right, (*axes[:-2], "1", axes[-1]))
    return lift.emit.op("Mul", [column, row])


def _says_nothing(op_type: str, operand: Array | None) -> bool:
    """Whether an operand leaves the other as it is: true of And, zero of Add."""
    if operand is None or operand.size != 1:
        return False
    return (op_type == "And" and bool(operand)) or (op_type == "Add" and not operand.any())


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


_RULES: dict[str, Callable[[Lift, ir.Node, Axes], ir.Value | None]] = {
    "Expand": _expanded, "Tile": _expanded, "Transpose": _transposed, "Trilu": _triangle,
    "Gather": _gathered, "Slice": _sliced, "MatMul": _outer, "ConstantOfShape": _filled,
}  # fmt: skip
