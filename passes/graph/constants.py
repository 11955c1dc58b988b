"""The whole numbers of an exported graph that decide what a row may see, or what a token is.

A comparison that is meant to notice a wrong window must run more rows than the window is wide, and
one that is meant to notice a hidden pad token must hold that token. Nothing in onnx, onnx-ir or
onnxscript looks for such numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.graph.meaning import constant, sizes_of

ARITHMETIC = {
    "Add", "Sub", "Div", "Mod", "Min", "Max", "Clip", "Trilu", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual", "Equal",
}  # fmt: skip
"""Ops whose constants may set a distance, a window or a chunk."""
COMPARISONS = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Sub", "Mod"}
SAME_NUMBERS = {
    "Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice",
}  # fmt: skip
"""Ops whose first input's numbers are their output's."""
SMALLEST = 4
"""Numbers below are axes, signs and steps of one."""
BUFFER = 4096
"""Largest side of a mask that is stored as a square."""


@dataclass
class Constants:
    """`distances`: whole numbers in the arithmetic of positions and masks, without sign.

    `tokens`: numbers that the elements of an integer input are compared with, and for an order
    their neighbours. `tables`: rows of the tables that are looked up by position or by token.
    """

    distances: set[int] = field(default_factory=set[int])
    tokens: set[int] = field(default_factory=set[int])
    tables: set[int] = field(default_factory=set[int])


def constants(model: ir.Model) -> Constants:
    """Walk the graph, its bodies included, in order. Weights are not read."""
    found = Constants()
    plain: set[ir.Value] = set(model.graph.inputs)
    raw: dict[ir.Value, int] = {v: 0 for v in model.graph.inputs if _whole(v)}
    for node in model.graph.all_nodes():
        inputs = [v for v in node.inputs if v is not None]
        if not all(v in plain or _is_plain(v) for v in inputs):
            if node.op_type == "Gather" and inputs[1] in raw:
                _note_table(found, inputs[0], raw[inputs[1]])
            found.distances |= _sides(inputs)
            continue
        plain.update(node.outputs)
        if node.op_type in SAME_NUMBERS and inputs and inputs[0] in raw:
            raw[node.outputs[0]] = raw[inputs[0]]
        if node.op_type in ("Range", "CumSum"):
            raw[node.outputs[0]] = 0
        if node.op_type in ARITHMETIC:
            numbers = [n for v in inputs for n in _numbers(v)]
            found.distances |= {abs(n) for n in numbers if abs(n) >= SMALLEST}
        sources = [v for v in inputs if v in raw]
        if sources and node.op_type in COMPARISONS:
            order = 0 if node.op_type == "Equal" else 1
            for number in (n for v in inputs for n in _numbers(v)):
                found.tokens |= set(range(number - order, number + order + 1))
        if len(sources) == 1 and node.op_type == "Add":
            moved = [n for v in inputs if v is not sources[0] for n in _numbers(v)]
            if len(moved) == 1:
                raw[node.outputs[0]] = raw[sources[0]] + moved[0]
    _note_windows(found, model.graph.all_nodes())
    return found


def _note_windows(found: Constants, nodes: Iterable[ir.Node]) -> None:
    for node in nodes:
        size = node.attributes.get("local_window_size")
        if size is not None and size.as_int() >= SMALLEST:
            found.distances.add(size.as_int())


def _note_table(found: Constants, table: ir.Value, offset: int) -> None:
    tensor = table.const_value
    if tensor is not None and len(sizes_of(tensor)) == 2:
        found.tables.add(sizes_of(tensor)[0] - offset)


def _sides(inputs: list[ir.Value]) -> set[int]:
    """Sides of stored masks: squares in the last two axes, alone or under axes of one."""
    sides: set[int] = set()
    for value in inputs:
        shape = list(sizes_of(value.const_value)) if value.const_value is not None else []
        square = len(shape) >= 2 and shape[-1] == shape[-2]
        mask = value.dtype == ir.DataType.BOOL or (len(shape) == 4 and set(shape[:2]) == {1})
        if square and mask and SMALLEST <= shape[-1] <= BUFFER:
            sides.add(shape[-1])
    return sides


def _whole(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _is_plain(value: ir.Value) -> bool:
    """A constant that is no weight: one number, or whole numbers and truths."""
    tensor = value.const_value
    if tensor is None:
        return constant(value) is not None
    return tensor.size == 1 or tensor.dtype.is_integer() or tensor.dtype == ir.DataType.BOOL


def _numbers(value: ir.Value) -> list[int]:
    """The whole numbers in a small constant, also behind ops that keep them."""
    while (maker := value.producer()) is not None and maker.op_type in SAME_NUMBERS:
        source = maker.inputs[0]
        if source is None:
            return []
        value = source
    array: Array | None = constant(value, 64)
    if array is None or array.dtype == np.bool_:
        return []
    wide = array.astype(np.float64).reshape(-1)
    wide = wide[np.isfinite(wide) & (np.abs(wide) < 1 << 31) & (wide == np.round(wide))]
    return [int(n) for n in wide]
