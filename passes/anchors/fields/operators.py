"""What each operator does to spans, by the name of the operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from graftline.passes.anchors.fields.broadcast import elementwise
from graftline.passes.anchors.fields.moves import MOVES
from graftline.passes.anchors.fields.products import PRODUCTS, STATISTICS
from graftline.passes.anchors.fields.slides import SLIDES
from graftline.passes.anchors.fields.span import Blocked, Span
from graftline.passes.anchors.fields.walk import Sized, State, Uniform, Walk
from graftline.passes.graph.meaning import DRAWS, label

ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
})  # fmt: skip
"""Operators whose outputs at a place depend on their operands at that place, broadcast."""
_FLOW = ("If", "Loop", "Scan")


def states_of(walk: Walk, node: ir.Node) -> list[State]:
    """What is known of a node's outputs. Raises CannotEvaluate where a shape is not known."""
    count, states = len(node.outputs), [walk.state(v) for v in node.inputs]
    if node.op_type in _FLOW:
        return [Blocked(label(node), "control flow decides by values of the whole")] * count
    if node.op_type in DRAWS:
        return [Blocked(label(node), "it draws noise, in other places for each window")] * count
    if node.op_type in ("Shape", "Size"):
        return [None if states[0] is None else Sized()] * count
    if not any(isinstance(s, Span | Blocked) for s in states):
        return [_without(node, states)] * count
    if not any(isinstance(s, Span) for s in states):
        first = next(s for s in states if isinstance(s, Blocked))
        if first.merged and node.op_type in STATISTICS:
            first = Blocked(label(node), STATISTICS[node.op_type])
        return [first] * count
    if node.op_type in ELEMENTWISE:
        return [elementwise(walk, node)] * count
    if (known := OPERATORS.get(node.op_type)) is None or node.domain not in ("", "ai.onnx"):
        return [Blocked(label(node), "the field of this operator is not known")] * count
    found = known(walk, node)
    return [found] * count if not isinstance(found, list) else found


def _without(node: ir.Node, states: Sequence[State]) -> State:
    """Of a node that reads no activation that follows the latents."""
    if node.op_type == "ConstantOfShape" and states[0] is not None:
        return Uniform()
    if all(s is None or isinstance(s, Uniform) for s in states):
        return Uniform() if any(states) else None
    if node.op_type == "Expand" and states[0] is None and node.inputs[0] is not None:
        tensor = node.inputs[0].const_value
        return Uniform() if tensor is not None and tensor.size == 1 else Sized()
    return Sized()


Operator = Callable[[Walk, ir.Node], "State | list[State]"]
OPERATORS: Mapping[str, Operator] = {**SLIDES, **MOVES, **PRODUCTS}
