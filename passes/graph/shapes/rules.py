"""The shapes of a node's outputs, by its operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from graftline.errors import CannotEvaluate
from graftline.passes.graph.meaning import constant, label
from graftline.passes.graph.shapes.moves import MOVES
from graftline.passes.graph.shapes.operands import Shape, axes, broadcast, need

if TYPE_CHECKING:
    from graftline.passes.graph.shapes.shapes import Measure

Rule = Callable[[ir.Node, "Measure"], list[Shape | None]]

_BROADCAST = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Where", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual",
    "Greater", "GreaterOrEqual", "Max", "Min", "Mod", "BitwiseAnd", "BitwiseOr", "PRelu", "Sum",
    "Mean",
})  # fmt: skip
_SAME = frozenset({
    "Identity", "Cast", "CastLike", "Neg", "Not", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Sin",
    "Cos", "Tanh", "Sigmoid", "Relu", "Gelu", "Erf", "Softplus", "Softmax", "LogSoftmax", "Clip",
    "CumSum", "Trilu", "IsNaN", "IsInf", "Floor", "Ceil", "Round", "Sign", "HardSwish", "Dropout",
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "RotaryEmbedding",
    "ScatterElements", "ScatterND", "LeakyRelu", "Elu", "Selu", "Mish", "Swish", "QuickGelu",
    "FastGelu", "BiasGelu", "Silu", "HardSigmoid", "Softsign", "GroupNormalization",
    "LpNormalization", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization",
    "DequantizeLinear", "TensorScatter",
})  # fmt: skip


def shapes_of(node: ir.Node, m: Measure) -> list[Shape | None]:
    """One shape per output, None where it is unknown. Raises CannotEvaluate and NotApplicable."""
    op = node.op_type
    if op in _BROADCAST:
        return [broadcast(node, [need(m.of(v)) for v in node.inputs if v is not None])]
    if op in _SAME:
        return [m.of(node.inputs[0])]
    rule = _RULES.get(op)
    if rule is None and op.startswith("Reduce"):
        rule = _reduce
    if rule is not None:
        return rule(node, m)
    return [m.world.value(v).shape for v in node.outputs]


def _reduce(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = need(m.of(node.inputs[0]))
    reduced = axes(node, m)
    if reduced is None:
        none = node.attributes.get_int("noop_with_empty_axes", 0)
        reduced = [] if none else list(range(len(shape)))
    dims = {a % len(shape) for a in reduced}
    keep = node.attributes.get_int("keepdims", 1)
    return [tuple(1 if i in dims else d for i, d in enumerate(shape) if keep or i not in dims)]


def _arg(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(need(m.of(node.inputs[0])))
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if node.attributes.get_int("keepdims", 1):
        shape[axis] = 1
    else:
        del shape[axis]
    return [tuple(shape)]


def _matmul(node: ir.Node, m: Measure) -> list[Shape | None]:
    a, b = need(m.of(node.inputs[0])), need(m.of(node.inputs[1]))
    if len(b) == 1:
        return [a[:-1]]
    return [(*broadcast(node, [a[:-2], b[:-2]]), *a[-2:-1], b[-1])]


def _gemm(node: ir.Node, m: Measure) -> list[Shape | None]:
    a, b = need(m.of(node.inputs[0])), need(m.of(node.inputs[1]))
    rows = a[1] if node.attributes.get_int("transA", 0) else a[0]
    return [(rows, b[0] if node.attributes.get_int("transB", 0) else b[1])]


def _matmul_nbits(node: ir.Node, m: Measure) -> list[Shape | None]:
    width = node.attributes.get_int("N", 0)
    return [(*need(m.of(node.inputs[0]))[:-1], int(width or 0))]


def _einsum(node: ir.Node, m: Measure) -> list[Shape | None]:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "..." in equation or "->" not in equation:
        raise CannotEvaluate(f"the shape of Einsum '{equation}' is not written out", [label(node)])
    left, right = equation.split("->")
    sizes: dict[str, int] = {}
    for letters, value in zip(left.split(","), node.inputs, strict=True):
        sizes.update(zip(letters, need(m.of(value)), strict=True))
    return [tuple(sizes[c] for c in right)]


def _shape(node: ir.Node, m: Measure) -> list[Shape | None]:
    rank = len(need(m.of(node.inputs[0])))
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return [(len(range(*slice(start, end).indices(rank))),)]


def _attention(node: ir.Node, m: Measure) -> list[Shape | None]:
    q, v = need(m.of(node.inputs[0])), need(m.of(node.inputs[2]))
    if len(q) == 4:
        return [(*q[:3], v[3])]
    heads, kv = (
        node.attributes.get_int("q_num_heads", 1),
        node.attributes.get_int("kv_num_heads", 1),
    )
    return [(*q[:2], int(heads or 1) * (v[2] // int(kv or 1)))]


def _constant_of_shape(node: ir.Node, m: Measure) -> list[Shape | None]:
    return [tuple(int(d) for d in m.values(node.inputs[0]))]


def _constant(node: ir.Node, m: Measure) -> list[Shape | None]:
    value = constant(node.outputs[0], 1 << 40)
    return [value.shape if value is not None else ()]


_RULES: dict[str, Rule] = {
    **MOVES, "ArgMax": _arg, "ArgMin": _arg, "MatMul": _matmul, "Gemm": _gemm,
    "MatMulNBits": _matmul_nbits, "Einsum": _einsum, "Shape": _shape, "Attention": _attention,
    "ConstantOfShape": _constant_of_shape, "Constant": _constant,
}  # fmt: skip
