"""Concrete shapes of every value at a choice of sizes, without touching a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.graph.meaning import World, element_type, label, sizes_of
from graftline.passes.graph.shapes.inference import (
    OPSET,
    Operator,
    Shape,
    Typed,
    infer,
    operator_of,
)

_LONGEST = 64
"""Elements of the longest operand that says a shape, axes or sizes."""
_INTEGERS = (ir.DataType.INT64.value, ir.DataType.INT32.value)
_SCALES = {"Resize": (ir.DataType.FLOAT.value,)}
"""Operators whose sizes floats say."""
_LIKE_THE_FIRST = frozenset({"GroupNormalization"})
"""Operators that onnx infers by a function's body alone, whose output is as their first operand."""
_CONTRIB = frozenset({"QuickGelu", "MatMulNBits"})


class Measure:
    """Shapes of all values of a graph in one world, computed in graph order; None where unknown.

    `operators` holds what is known of the graph's nodes from other worlds, `inputs` the shapes of
    inputs whose numbers are not known.
    """

    def __init__(
        self,
        graph: Iterable[ir.Node],
        world: World,
        operators: dict[ir.Node, Operator] | None = None,
        inputs: Mapping[ir.Value, Shape] = MappingProxyType({}),
    ) -> None:
        self.shapes: dict[ir.Value, Shape | None] = dict(inputs)
        self.world = world
        world.shapes = self.shapes
        self._types: dict[ir.Value, int] = {}
        self._operators = {} if operators is None else operators
        for node in graph:
            self._node(node)

    def of(self, value: ir.Value | None) -> Shape | None:
        """Shape of a value, or None when it depends on data."""
        if value is None:
            return None
        if value in self.shapes:
            return self.shapes[value]
        if value in self.world.known:
            return self.world.known[value].shape
        if value.const_value is not None:
            return sizes_of(value.const_value)
        return None

    def values(self, value: ir.Value | None) -> Array:
        """The value of a shape operand."""
        if value is None:
            raise NotApplicable("a shape operand is missing")
        return self.world.value(value)

    def _node(self, node: ir.Node) -> None:
        try:
            found = self._outputs(node)
        except CannotEvaluate:
            # data-dependent or unknown: whoever needs this shape will say so
            found = [None] * len(node.outputs)
        for value, typed in zip(node.outputs, found, strict=False):
            self.shapes[value] = typed.shape if typed is not None else None
            if typed is not None:
                self._types[value] = typed.dtype

    def _outputs(self, node: ir.Node) -> Sequence[Typed | None]:
        """By the operator's schema; told the values of its operands where that leaves a size open,
        and evaluated where it still does."""
        if node.domain == MICROSOFT:
            return [self._contrib(node)]
        operands = [None if v is None else self._typed(v) for v in node.inputs]
        if node.op_type in _LIKE_THE_FIRST:
            return operands[:1]
        found = self._inferred(node, operands)
        if not _is_open(node, found):
            return found
        pairs = zip(operands, node.inputs, strict=True)
        kinds = (*_INTEGERS, *_SCALES.get(node.op_type, ()))
        found = self._inferred(node, [self._with_values(t, v, kinds) for t, v in pairs])
        return self._evaluated(node, found) if _is_open(node, found) else found

    def _evaluated(self, node: ir.Node, found: Sequence[Typed | None]) -> Sequence[Typed | None]:
        """Outputs that depend on no activation, by their values; the others as they were `found`.
        """
        try:
            arrays = [self.world.value(value) for value in node.outputs]
        except CannotEvaluate:
            return found
        return [Typed(ir.DataType.from_numpy(a.dtype).value, a.shape) for a in arrays]

    def _inferred(self, node: ir.Node, operands: list[Typed | None]) -> Sequence[Typed | None]:
        if node not in self._operators:
            self._operators[node] = operator_of(node)
        try:
            return infer(self._operators[node], tuple(operands))
        except InferenceError as error:
            sizes = " and ".join(str(t.shape) for t in operands if t is not None)
            raise NotApplicable(
                f"operands of the shapes {sizes} do not fit ({_line(error)}): the graph was "
                "exported for fixed sizes; export it with a dynamic batch and length",
                [label(node)],
            ) from None
        except ValidationError as error:
            told = f"not an operator as ONNX's opset {OPSET} defines it: {_line(error)}"
            raise NotApplicable(told, [label(node)]) from None

    def _typed(self, value: ir.Value) -> Typed:
        dtype = self._types.get(value)
        if dtype is None:
            dtype = element_type(value).value
        return Typed(dtype, self.of(value))

    def _with_values(
        self, typed: Typed | None, value: ir.Value | None, kinds: tuple[int, ...]
    ) -> Typed | None:
        """An operand that may say a shape, axes, sizes or scales, by its type, with its values
        where they are known."""
        if typed is None or value is None or typed.dtype not in kinds:
            return typed
        if typed.shape is None or len(typed.shape) > 1 or sum(typed.shape) > _LONGEST:
            return typed
        try:
            array = np.asarray(self.world.value(value), ir.DataType(typed.dtype).numpy())
            return typed._replace(data=array.tobytes())
        except CannotEvaluate:
            return typed

    def _contrib(self, node: ir.Node) -> Typed:
        """ONNX Runtime's operators have no schema in onnx; two of them may be left when the front
        has written the others in ONNX's. Raises CannotEvaluate."""
        x = node.inputs[0]
        typed = None if x is None else self._typed(x)
        if typed is None or typed.shape is None or node.op_type not in _CONTRIB:
            raise CannotEvaluate("the operator has no schema in onnx", [label(node)])
        if node.op_type == "QuickGelu":
            return typed
        return Typed(typed.dtype, (*typed.shape[:-1], int(node.attributes["N"].as_int())))


def _is_open(node: ir.Node, found: Sequence[Typed | None]) -> bool:
    """Whether the shape of an output is not told that somebody reads."""
    return any(
        (typed is None or typed.shape is None) and (value.uses() or value.is_graph_output())
        for value, typed in zip(node.outputs, found, strict=True)
    )


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
