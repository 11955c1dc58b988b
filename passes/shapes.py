"""Concrete shapes of every value at a choice of sizes, without touching a weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.meaning import World, constant, label, sizes_of

Shape = tuple[int, ...]
Rule = Callable[[ir.Node, "Measure"], list[Shape | None]]

_BROADCAST = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Where",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "Max",
        "Min",
        "Mod",
        "BitwiseAnd",
        "BitwiseOr",
        "PRelu",
        "Sum",
        "Mean",
    ]
)
_SAME = frozenset(
    [
        "Identity",
        "Cast",
        "CastLike",
        "Neg",
        "Not",
        "Abs",
        "Sqrt",
        "Reciprocal",
        "Exp",
        "Log",
        "Sin",
        "Cos",
        "Tanh",
        "Sigmoid",
        "Relu",
        "Gelu",
        "Erf",
        "Softplus",
        "Softmax",
        "LogSoftmax",
        "Clip",
        "CumSum",
        "Trilu",
        "IsNaN",
        "IsInf",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "HardSwish",
        "Dropout",
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "RotaryEmbedding",
        "ScatterElements",
        "ScatterND",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Mish",
        "Swish",
        "QuickGelu",
        "FastGelu",
        "BiasGelu",
        "Silu",
        "HardSigmoid",
        "Softsign",
        "GroupNormalization",
        "LpNormalization",
        "SkipSimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "DequantizeLinear",
        "TensorScatter",
    ]
)


class Measure:
    """Shapes of all values of a graph in one world, computed in graph order; None where unknown."""

    def __init__(self, graph: ir.Graph, world: World) -> None:
        self.shapes: dict[ir.Value, Shape | None] = {}
        self.world = world
        world.shapes = self.shapes
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
            found = _shapes(node, self)
        except CannotEvaluate:
            # data-dependent or unknown: whoever needs this shape will say so
            found = []
        for i, value in enumerate(node.outputs):
            self.shapes[value] = found[i] if i < len(found) else None


def _need(shape: Shape | None) -> Shape:
    if shape is None:
        raise CannotEvaluate("unknown shape")
    return shape


def _shapes(node: ir.Node, m: Measure) -> list[Shape | None]:
    op = node.op_type
    if op in _BROADCAST:
        return [_broadcast(node, [_need(m.of(v)) for v in node.inputs if v is not None])]
    if op in _SAME:
        return [m.of(node.inputs[0])]
    rule = _RULES.get(op)
    if rule is None and op.startswith("Reduce"):
        rule = _reduce
    if rule is not None:
        return rule(node, m)
    return [m.world.value(v).shape for v in node.outputs]


def _broadcast(node: ir.Node, shapes: list[Shape]) -> Shape:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        sizes = " and ".join(str(s) for s in shapes)
        raise NotApplicable(
            f"shapes {sizes} do not go together: the graph was exported for fixed sizes, export "
            "it with a dynamic batch and length", [label(node)],
        ) from None  # fmt: skip


def _axes(node: ir.Node, m: Measure, index: int = 1) -> list[int] | None:
    if len(node.inputs) > index and node.inputs[index] is not None:
        return [int(a) for a in m.values(node.inputs[index])]
    ints = node.attributes.get_ints("axes", None)
    return None if ints is None else [int(a) for a in ints]


def _reduce(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = _need(m.of(node.inputs[0]))
    axes = _axes(node, m)
    if axes is None:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(len(shape)))
    dims = {a % len(shape) for a in axes}
    keep = node.attributes.get_int("keepdims", 1)
    return [tuple(1 if i in dims else d for i, d in enumerate(shape) if keep or i not in dims)]


def _arg(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(_need(m.of(node.inputs[0])))
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if node.attributes.get_int("keepdims", 1):
        shape[axis] = 1
    else:
        del shape[axis]
    return [tuple(shape)]


def _matmul(node: ir.Node, m: Measure) -> list[Shape | None]:
    a, b = _need(m.of(node.inputs[0])), _need(m.of(node.inputs[1]))
    if len(b) == 1:
        return [a[:-1]]
    return [(*_broadcast(node, [a[:-2], b[:-2]]), *a[-2:-1], b[-1])]


def _gemm(node: ir.Node, m: Measure) -> list[Shape | None]:
    a, b = _need(m.of(node.inputs[0])), _need(m.of(node.inputs[1]))
    rows = a[1] if node.attributes.get_int("transA", 0) else a[0]
    return [(rows, b[0] if node.attributes.get_int("transB", 0) else b[1])]


def _matmul_nbits(node: ir.Node, m: Measure) -> list[Shape | None]:
    width = node.attributes.get_int("N", 0)
    return [(*_need(m.of(node.inputs[0]))[:-1], int(width or 0))]


def _einsum(node: ir.Node, m: Measure) -> list[Shape | None]:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "..." in equation or "->" not in equation:
        raise CannotEvaluate(f"the shape of Einsum '{equation}' is not told", [label(node)])
    left, right = equation.split("->")
    sizes: dict[str, int] = {}
    for letters, value in zip(left.split(","), node.inputs, strict=True):
        sizes.update(zip(letters, _need(m.of(value)), strict=True))
    return [tuple(sizes[c] for c in right)]


def _reshape(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = _need(m.of(node.inputs[0]))
    target = [int(d) for d in m.values(node.inputs[1])]
    if not node.attributes.get_int("allowzero", 0):
        target = [shape[i] if d == 0 else d for i, d in enumerate(target)]
    if -1 in target:
        rest = math.prod(d for d in target if d != -1)
        target[target.index(-1)] = math.prod(shape) // max(rest, 1)
    return [tuple(target)]


def _expand(node: ir.Node, m: Measure) -> list[Shape | None]:
    target = tuple(int(d) for d in m.values(node.inputs[1]))
    return [_broadcast(node, [_need(m.of(node.inputs[0])), target])]


def _tile(node: ir.Node, m: Measure) -> list[Shape | None]:
    times = m.values(node.inputs[1])
    return [tuple(d * int(t) for d, t in zip(_need(m.of(node.inputs[0])), times, strict=True))]


def _transpose(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = _need(m.of(node.inputs[0]))
    perm = node.attributes.get_ints("perm", None) or tuple(reversed(range(len(shape))))
    return [tuple(shape[p] for p in perm)]


def _squeeze(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape, axes = _need(m.of(node.inputs[0])), _axes(node, m)
    drop = (
        {i for i, d in enumerate(shape) if d == 1}
        if axes is None
        else {a % len(shape) for a in axes}
    )
    return [tuple(d for i, d in enumerate(shape) if i not in drop)]


def _unsqueeze(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape, axes = list(_need(m.of(node.inputs[0]))), _axes(node, m) or []
    rank = len(shape) + len(axes)
    for axis in sorted(a % rank for a in axes):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _concat(node: ir.Node, m: Measure) -> list[Shape | None]:
    shapes = [_need(m.of(v)) for v in node.inputs]
    axis = node.attributes["axis"].as_int() % len(shapes[0])
    first = list(shapes[0])
    first[axis] = sum(s[axis] for s in shapes)
    return [tuple(first)]


def _pad(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(_need(m.of(node.inputs[0])))
    pads = [int(p) for p in m.values(node.inputs[1])]
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = range(len(shape)) if given is None else [int(a) for a in m.values(given)]
    half = len(pads) // 2
    for axis, before, after in zip(axes, pads[:half], pads[half:], strict=True):
        shape[axis] += before + after
    return [tuple(shape)]


def _split(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(_need(m.of(node.inputs[0])))
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = [int(s) for s in m.values(node.inputs[1])]
    else:
        count = len(node.outputs)
        each = -(-shape[axis] // count)
        sizes = [each] * (count - 1) + [shape[axis] - each * (count - 1)]
    return [tuple([*shape[:axis], s, *shape[axis + 1 :]]) for s in sizes]


def _slice(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(_need(m.of(node.inputs[0])))
    operands = [m.values(v) if v is not None else None for v in node.inputs[1:]]
    starts, ends = operands[0], operands[1]
    axes = operands[2] if len(operands) > 2 and operands[2] is not None else range(len(shape))
    steps = operands[3] if len(operands) > 3 else None
    if starts is None or ends is None:
        return [None]
    for i, (axis, start, end) in enumerate(zip(axes, starts, ends, strict=False)):
        step = 1 if steps is None else int(steps[i])
        length = shape[int(axis)]
        shape[int(axis)] = len(range(*slice(int(start), int(end), step).indices(length)))
    return [tuple(shape)]


def _gather(node: ir.Node, m: Measure) -> list[Shape | None]:
    data, at = _need(m.of(node.inputs[0])), _need(m.of(node.inputs[1]))
    axis = node.attributes.get_int("axis", 0) % len(data)
    return [(*data[:axis], *at, *data[axis + 1 :])]


def _gather_elements(node: ir.Node, m: Measure) -> list[Shape | None]:
    return [m.of(node.inputs[1])]


def _gather_nd(node: ir.Node, m: Measure) -> list[Shape | None]:
    data, at = _need(m.of(node.inputs[0])), _need(m.of(node.inputs[1]))
    batch = node.attributes.get_int("batch_dims", 0)
    return [(*at[:-1], *data[batch + at[-1] :])]


def _topk(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(_need(m.of(node.inputs[0])))
    shape[node.attributes.get_int("axis", -1)] = int(m.values(node.inputs[1]).reshape(()))
    return [tuple(shape), tuple(shape)]


def _one_hot(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(_need(m.of(node.inputs[0])))
    axis = node.attributes.get_int("axis", -1) % (len(shape) + 1)
    shape.insert(axis, int(m.values(node.inputs[1]).reshape(())))
    return [tuple(shape)]


def _flatten(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = _need(m.of(node.inputs[0]))
    axis = node.attributes.get_int("axis", 1)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _shape(node: ir.Node, m: Measure) -> list[Shape | None]:
    rank = len(_need(m.of(node.inputs[0])))
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return [(len(range(*slice(start, end).indices(rank))),)]


def _attention(node: ir.Node, m: Measure) -> list[Shape | None]:
    q, v = _need(m.of(node.inputs[0])), _need(m.of(node.inputs[2]))
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
    "ArgMax": _arg, "ArgMin": _arg, "MatMul": _matmul, "Gemm": _gemm, "MatMulNBits": _matmul_nbits,
    "Einsum": _einsum, "Reshape": _reshape, "Expand": _expand, "Tile": _tile,
    "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Concat": _concat,
    "Split": _split, "Slice": _slice, "Pad": _pad, "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "TopK": _topk,
    "OneHot": _one_hot, "Flatten": _flatten,
    "Shape": _shape, "Attention": _attention, "ConstantOfShape": _constant_of_shape,
    "Constant": _constant,
}  # fmt: skip
