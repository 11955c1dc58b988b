"""Operators of masks, written again over lifted operands: one rule each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.graph.meaning import constant, element_type, evaluate_node, sizes_of
from graftline.passes.graph.mismatch import Mismatch

if TYPE_CHECKING:
    from graftline.passes.canonical.mask.lift import Axes, Lift, Lifted

_OPERATORS = """
    Abs Add And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Cos Div Elu Equal
    Erf Exp Floor Greater GreaterOrEqual HardSigmoid Identity IsInf IsNaN LeakyRelu Less LessOrEqual
    Log Max Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Sin Softplus Sqrt Sub Sum
    Tanh Where Xor
"""
_ELEMENTWISE = frozenset(_OPERATORS.split())
_KEEPS_ORDER = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


NO_RULE = "a mask is written in a way that cannot be followed"


def by_operator(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    """The first output of a node, lifted."""
    if node.op_type in _ELEMENTWISE:
        return _elementwise(lift, node, axes)
    if node.op_type in _KEEPS_ORDER:
        return _reordered(lift, node, axes)
    rule = _RULES.get(node.op_type)
    return rule(lift, node, axes) if rule is not None else _unruled(node, "no rule for it")


def _unruled(node: ir.Node, why: str) -> Mismatch:
    return Mismatch.at(node, f"{NO_RULE}: {why}")


def _elementwise(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        made = None if value is None else lift.operand(value, axes)
        if isinstance(made, Mismatch):
            return made
        inputs.append(made)
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


def _expanded(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    source = node.inputs[0]
    assert source is not None
    rank = len(lift.lengths.measures.shape(source))
    sizes = [lift.shapes_at(source, i) for i in range(rank)]
    now = [lift.shapes_at(node.outputs[0], len(axes) - rank + i) for i in range(rank)]
    if any(s not in (1, n) for s, n in zip(sizes, now, strict=True)):
        return _unruled(node, "it repeats more than one number")
    return lift.operand(source, axes)


def _transposed(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    perm = node.attributes.get_ints("perm", None) or tuple(reversed(range(len(axes))))
    before = ["1"] * len(axes)
    for at, source in enumerate(perm):
        before[source] = axes[at]
    return lift.operand(node.inputs[0], tuple(before))


def _reordered(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    """Axes keep their order: sizes of one come and go, batch and heads are joined or split."""
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    left = [(a, lift.shapes_at(out, i)) for i, a in enumerate(axes) if a != "1"]
    rank = len(lift.lengths.measures.shape(source))
    before: list[str] = []
    for size in [lift.shapes_at(source, i) for i in range(rank)]:
        if size == 1:
            before.append("1")
        elif left and left[0][1] == size:
            before.append(left.pop(0)[0])
        elif [a for a, _ in left[:2]] == ["b", "h"]:
            left = left[2:]
            before.append("bh")
        elif left and left[0][0] == "bh" and size == _batches(lift):
            left[0] = ("h", size)
            before.append("b")
        elif left and left[0][0] == "h" and before[-1:] == ["b"]:
            left.pop(0)
            before.append("h")
        else:
            return _unruled(node, "it joins axes other than batch and heads")
    if left:
        return _unruled(node, "it splits axes other than batch and heads")
    return lift.operand(source, tuple(before))


def _batches(lift: Lift) -> int | tuple[int, ...]:
    return lift.shapes_at(lift.lengths.measures.tokens, 0)


def _filled(lift: Lift, node: ir.Node, axes: Axes) -> ir.Value:
    """One number everywhere, whatever the shape."""
    held = node.attributes.get("value")
    tensor = held.as_tensor().numpy() if held is not None else np.zeros(1, np.float32)
    return lift.constant(tensor.reshape(()))


def _triangle(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    """Trilu: what lies on one side of a diagonal, else zero."""
    shift = constant(node.inputs[1]) if len(node.inputs) > 1 else np.zeros((), np.int64)
    if set(axes[-2:]) != {"q", "k"} or shift is None:
        return _unruled(node, "a triangle of other axes than positions, or of a computed diagonal")
    source = lift.operand(node.inputs[0], axes)
    if isinstance(source, Mismatch):
        return source
    row, column = lift.leaf(axes[-2]), lift.leaf(axes[-1])
    if int(shift.reshape(())):
        row = lift.emit.op("Add", [row, lift.constant(shift.reshape(()).astype(np.int64))])
    upper = node.attributes.get_int("upper", 1)
    kept = lift.emit.op("GreaterOrEqual" if upper else "LessOrEqual", [column, row])
    dtype = element_type(_first(node))
    nothing = lift.constant(np.zeros((), dtype.numpy()))
    return lift.choose(kept, source, nothing, dtype)


def _gathered(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    """A table of numbers, perhaps one column per head, read by lifted indices."""
    data, at = node.inputs[0], node.inputs[1]
    dims = lift.lengths.measures.dims(data) if data is not None else None
    if data is None or at is None or dims is None or "N" in dims:
        return _unruled(node, "its table is as long as the text, or of unknown shape")
    shape = lift.lengths.measures.shape(data)
    axis = (node.attributes.get_int("axis", 0) or 0) % len(shape)
    rank = len(lift.lengths.measures.shape(at))
    rest = axes[:axis] + axes[axis + rank :]
    if any(a not in ("h", "1") for a in rest) or rest.count("h") > 1:
        return _unruled(node, "its table has other axes than rows and heads")
    index = lift.operand(at, axes[axis : axis + rank])
    if isinstance(index, Mismatch):
        return index
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


def _sliced(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    """The first positions of something longer."""
    operands = [lift.lengths.rows(v) if v is not None else {} for v in node.inputs[1:]]
    starts = [a for a in operands[0].values()]
    steps = list(operands[3].values()) if len(operands) > 3 else []
    if any(a.any() for a in starts) or any((a != 1).any() for a in steps):
        return _unruled(node, "it takes other rows than the first ones")
    for i, axis in enumerate(axes):
        kept = lift.shapes_at(node.outputs[0], i) == lift.shapes_at(_first(node), i)
        if axis not in ("q", "k") and not kept:
            return _unruled(node, "it takes a part of an axis that is not one of positions")
    return lift.operand(node.inputs[0], axes)


def _outer(lift: Lift, node: ir.Node, axes: Axes) -> Lifted:
    """A column times a row."""
    left = _first(node)
    shape = lift.lengths.measures.shape(left)
    if len(shape) < 2 or shape[-1] != 1:
        return _unruled(node, "a product of more than a column and a row")
    column = lift.operand(left, (*axes[:-1], "1"))
    row = lift.operand(node.inputs[1], (*axes[:-2], "1", axes[-1]))
    for part in (column, row):
        if isinstance(part, Mismatch):
            return part
    assert isinstance(column, ir.Value)
    assert isinstance(row, ir.Value)
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


_RULES: dict[str, Callable[[Lift, ir.Node, Axes], Lifted]] = {
    "Expand": _expanded, "Tile": _expanded, "Transpose": _transposed, "Trilu": _triangle,
    "Gather": _gathered, "Slice": _sliced, "MatMul": _outer, "ConstantOfShape": _filled,
}  # fmt: skip
