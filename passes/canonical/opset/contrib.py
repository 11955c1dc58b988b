"""Operators of ONNX Runtime's domain, read into the standard ones.

What its optimizer and the GenAI builder write: GroupQueryAttention, MultiHeadAttention, Attention
over packed weights, RotaryEmbedding, fused activations and products. Each becomes the nodes it
stands for on sequences without padding and without a past; lengths and masks that it takes are
evaluated, and refused where they are not those. Source: ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops import CONTRIB_OPS
from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import NotApplicable
from graftline.passes.canonical.opset.contrib_node import ContribNode
from graftline.passes.graph.meaning import label

_QUANTIZES_ACTIVATIONS = frozenset({
    "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention",
    "QOrderedAttention",
})  # fmt: skip
_KEPT = frozenset(op.__name__ for op in CONTRIB_OPS) | {"SkipLayerNormalization"}


def refuse_quantized(graph: ir.Graph) -> None:
    """Refuse activations that are quantized by the largest among all rows of a call."""
    found = [n for n in graph.all_nodes() if n.op_type in _QUANTIZES_ACTIVATIONS]
    if found:
        raise NotApplicable(
            f"{found[0].op_type} scales activations by the largest value among all rows of a call, "
            "so that a token's result depends on the tokens that are verified with it: nothing "
            "lossless can be built on that; give the model as it was before dynamic quantization, "
            "with --dtype int8 or int4",
            [label(n) for n in found],
        )


def expand_contrib(model: ir.Model, tokens: ir.Value, positions: ir.Value) -> None:
    """Rewrite every operator of the domain com.microsoft that has a standard meaning.

    Raises NotApplicable naming the node, and what of it is not understood.
    """
    graph = model.graph
    for node in list(graph):
        if node.domain != MICROSOFT:
            continue
        if node.op_type in _READERS:
            contrib = ContribNode(graph, node, tokens, positions)
            contrib.check_attributes(_ATTRIBUTES[node.op_type])
            _READERS[node.op_type](contrib)
        elif node.op_type not in _KEPT:
            raise NotApplicable(
                f"{node.op_type} of ONNX Runtime is not read; export the model again without that "
                "optimization",
                [label(node)],
            )


def _group_query(c: ContribNode) -> None:
    heads, groups = c.int("num_heads"), c.int("kv_num_heads")
    if c.int("smooth_softmax", -1) > 0 or c.input(11) is not None:
        raise c.refuse("has attention sinks, which are not supported")
    c.without(12)
    c.check_number(5, 1, "the last position")
    c.check_number(6, 0, "the total length")
    if c.input(1) is None:
        packed = c.split_heads(c.need(0), heads + 2 * groups)
        q, k, v = c.parts(packed, 1, (heads, groups, groups))
    else:
        q = c.split_heads(c.need(0), heads)
        k, v = (c.split_heads(c.need(i), groups) for i in (1, 2))
    if c.int("do_rotary"):
        given = c.input(9)
        at = c.counted() if given is None else given
        q, k = (c.rotate(x, (7, 8), at, "rotary_interleaved") for x in (q, k))
    mask, window = c.input(10), c.int("local_window_size", -1)
    if window > 0:
        if mask is not None:
            raise c.refuse("has both a window and a bias, which are not supported together")
        mask = _window(c, window)
    c.done(c.merge_heads(c.attend([q, k, v], mask, mask is None or window <= 0, c.float("scale"))))


def _window(c: ContribNode, size: int) -> ir.Value:
    """[N, N]: a key may be seen from fewer than `size` positions behind, and never from before."""
    one = c.emit.const("row.1", [1], np.int64)
    rows = c.rows()
    queries = c.emit.op("Unsqueeze", [rows, one])
    behind = c.emit.op("Sub", [queries, rows])
    past = c.emit.op("GreaterOrEqual", [behind, c.emit.const("number.0", 0, np.int64)])
    near = c.emit.op("Less", [behind, c.emit.const(f"window.{size}", size, np.int64)])
    made = c.emit.op("And", [past, near])
    made.type = ir.TensorType(ir.DataType.BOOL)
    return made


def _multi_head(c: ContribNode) -> None:
    heads = c.int("num_heads")
    c.without(8)
    c.check_open(4)
    if c.input(1) is None or c.input(2) is None:
        raise c.refuse("takes packed queries, keys and values in five dimensions; not supported")
    given = [c.need(i) for i in range(3)]
    bias = c.input(3)
    if bias is not None:
        size = bias.shape[0] if bias.shape is not None else None
        if not isinstance(size, int):
            raise c.refuse("has a bias of unknown size")
        biases = c.parts(bias, 0, [size // 3] * 3)
        given = [c.op("Add", [x, b]) for x, b in zip(given, biases, strict=True)]
    parts = [c.split_heads(x, heads) for x in given]
    out = c.attend(parts, c.input(5), bool(c.int("unidirectional")), c.float("scale"))
    c.done(c.merge_heads(out))


def _packed_weights(c: ContribNode) -> None:
    """Attention of com.microsoft: one product for queries, keys and values."""
    heads = c.int("num_heads")
    mask = c.input(3)
    if mask is not None:
        c.check_open(3)
    if c.input(6) is not None:
        raise c.refuse("takes a past length, which is not supported")
    weight = c.need(1)
    width = weight.shape[1] if weight.shape is not None else None
    if not isinstance(width, int):
        raise c.refuse("has weights of unknown size")
    attribute = c.node.attributes.get("qkv_hidden_sizes")
    sizes = list(attribute.as_ints()) if attribute is not None else [width // 3] * 3
    product = c.op("MatMul", [c.need(0), weight])
    if c.input(2) is not None:
        product = c.op("Add", [product, c.need(2)])
    parts = [c.split_heads(x, heads) for x in c.parts(product, 2, sizes)]
    out = c.attend(parts, c.input(5), bool(c.int("unidirectional")), c.float("scale"))
    c.done(c.merge_heads(out))


def _rotary(c: ContribNode) -> None:
    if c.float("scale", 1.0) != 1.0:
        raise c.refuse("scales its positions, which is not supported")
    x, at, cos = c.need(0), c.need(1), c.need(2)
    single = at.shape is not None and len(at.shape) == 1
    at = c.counted(at) if single else at
    dims = cos.shape
    half = dims[1] if dims is not None and len(dims) == 2 else None
    if not isinstance(half, int):
        raise c.refuse("has tables of unknown size")
    rank = len(x.shape) if x.shape is not None else 3
    if rank == 4:
        c.done(c.rotate(x, (2, 3), at, "interleaved"))
        return
    heads = c.int("num_heads")
    shape = (0, 0, heads, -1) if heads else (0, 0, -1, 2 * half)
    rows = c.op("Reshape", [x, c.ints(*shape)])
    turned = c.rotate(c.op("Transpose", [rows], perm=[0, 2, 1, 3]), (2, 3), at, "interleaved")
    c.done(c.merge_heads(turned))


def _gelu(approximate: str) -> Callable[[ContribNode], None]:
    def read(c: ContribNode) -> None:
        x, bias = c.need(0), c.input(1)
        x = x if bias is None else c.op("Add", [x, bias])
        c.done(c.op("Gelu", [x], approximate=approximate))

    return read


def _product(c: ContribNode) -> None:
    a, b = c.need(0), c.need(1)
    a, b = (_turned(c, v, n) for v, n in ((a, "transA"), (b, "transB")))
    out = c.op("MatMul", [a, b])
    alpha = c.float("alpha", 1.0)
    if alpha != 1.0:
        kind = (out.dtype or ir.DataType.FLOAT).numpy()
        out = c.op("Mul", [out, c.emit.const(f"alpha.{alpha}.{kind.name}", alpha, kind)])
    c.done(out)


def _turned(c: ContribNode, value: ir.Value, attribute: str) -> ir.Value:
    if not c.int(attribute):
        return value
    rank = len(value.shape) if value.shape is not None else 0
    if rank < 2:
        raise c.refuse("transposes a value of unknown rank")
    return c.op("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])


_READERS: dict[str, Callable[[ContribNode], None]] = {
    "GroupQueryAttention": _group_query, "MultiHeadAttention": _multi_head,
    "Attention": _packed_weights, "RotaryEmbedding": _rotary, "Gelu": _gelu("none"),
    "BiasGelu": _gelu("none"), "FastGelu": _gelu("tanh"), "FusedMatMul": _product,
}  # fmt: skip
_HEADS = frozenset({"num_heads", "scale", "unidirectional", "mask_filter_value"})
_ATTRIBUTES: dict[str, frozenset[str]] = {
    "GroupQueryAttention": frozenset({
        "num_heads", "kv_num_heads", "scale", "softcap", "local_window_size", "do_rotary",
        "rotary_interleaved", "smooth_softmax"}),
    "MultiHeadAttention": _HEADS, "Attention": _HEADS | {"qkv_hidden_sizes"},
    "RotaryEmbedding": frozenset({
        "interleaved", "num_heads", "rotary_embedding_dim", "scale", "is_packed_batching"}),
    "Gelu": frozenset(), "BiasGelu": frozenset(), "FastGelu": frozenset(),
    "FusedMatMul": frozenset({"alpha", "transA", "transB"}),
}  # fmt: skip
