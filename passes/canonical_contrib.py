"""Operators of ONNX Runtime's domain, read into the standard ones.

What its optimizer and the GenAI builder write: GroupQueryAttention, MultiHeadAttention, Attention
over packed weights, RotaryEmbedding, fused activations and products. Each becomes the nodes it
stands for on sequences without padding and without a past; lengths and masks that it takes are
evaluated, and refused where they are not those. Source: ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops import CONTRIB_OPS
from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical_shapes import SIZES
from graftline.passes.emit import Emit
from graftline.passes.meaning import World, label

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
            "lossless can be built on that; give the model before dynamic quantization, and "
            "--dtype int8 or int4",
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
            contrib = _Contrib(graph, node, tokens, positions)
            contrib.check_attributes()
            _READERS[node.op_type](contrib)
        elif node.op_type not in _KEPT:
            raise NotApplicable(
                f"{node.op_type} of ONNX Runtime is not read; export the model again without that "
                "optimization",
                [label(node)],
            )


@dataclass
class _Contrib:
    """One node of the domain, and the writing of its parts in front of it."""

    graph: ir.Graph
    node: ir.Node
    tokens: ir.Value
    positions: ir.Value

    def __post_init__(self) -> None:
        self.emit = Emit(self.graph, "canonicalize", at=self.node)
        self.type = next(v.type for v in self.node.inputs if v is not None)
        first = self.node.inputs[0]
        if first is not None and first.type is not None:
            self.type = first.type

    def input(self, index: int) -> ir.Value | None:
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else None

    def need(self, index: int) -> ir.Value:
        value = self.input(index)
        if value is None:
            raise NotApplicable(f"input {index} is missing", [label(self.node)])
        return value

    def int(self, name: str, default: int = 0) -> int:
        return int(self.node.attributes.get_int(name, default) or 0)

    def float(self, name: str, default: float = 0.0) -> float:
        return float(self.node.attributes.get_float(name, default) or 0.0)

    def refuse(self, what: str) -> NotApplicable:
        return NotApplicable(f"{self.node.op_type} {what}", [label(self.node)])

    def check_attributes(self) -> None:
        """Refuse an attribute that is not understood, unless it says nothing."""
        known = _ATTRIBUTES[self.node.op_type]
        for name, attribute in self.node.attributes.items():
            idle = attribute.value in (0, 0.0, -1, "NONE", "")
            if name not in known and not idle:
                raise self.refuse(f"has the attribute {name}, which is not understood")

    def without(self, first: int) -> None:
        """Refuse inputs from a place on."""
        if any(v is not None for v in self.node.inputs[first:]):
            raise self.refuse(f"takes an input beyond its first {first}, which is not understood")

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        made = self.emit.op(op_type, inputs, **attributes)
        made.type = self.type
        return made

    def ints(self, *values: int) -> ir.Value:
        name = "shape." + "_".join(map(str, values))
        return self.emit.const(name, list(values), np.int64)

    def done(self, *outputs: ir.Value) -> None:
        """Put values in place of the node's outputs."""
        for old, new in zip(self.node.outputs, outputs, strict=False):
            new.shape = old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        rest = self.node.outputs[len(outputs) :]
        if any(v.uses() or v.is_graph_output() for v in rest):
            raise self.refuse("has its second output read, which is not understood")
        self.graph.remove(self.node, safe=True)

    def values(self, value: ir.Value) -> list[tuple[Array, int, int]]:
        """What weight-free value an input has at several (batch, length)."""
        out: list[tuple[Array, int, int]] = []
        for batch, length in SIZES:
            ids = np.zeros((batch, length), np.int64)
            at = np.broadcast_to(np.arange(length, dtype=np.int64), ids.shape)
            world = World({self.tokens: ids, self.positions: at})
            out.append((world.value(value), batch, length))
        return out

    def check_number(self, index: int, less: int, what: str) -> None:
        """Hold an input to N - `less` at every size."""
        for found, _, length in self.values(self.need(index)):
            if (found != length - less).any():
                raise self.refuse(
                    f"takes {found.reshape(-1)[0]} as {what} of {length} tokens without padding"
                )

    def check_open(self, index: int) -> None:
        """Hold a padding mask to hiding nothing: ones, or the whole length."""
        value = self.input(index)
        if value is None:
            return
        for found, _, length in self.values(value):
            whole = (found == length).all() if found.ndim == 1 else (found == 1).all()
            if not whole:
                raise self.refuse("hides keys although no token is padding")

    def split_heads(self, x: ir.Value, heads: int) -> ir.Value:
        """[B, N, heads*D] -> [B, heads, N, D]."""
        rows = self.op("Reshape", [x, self.ints(0, 0, heads, -1)])
        return self.op("Transpose", [rows], perm=[0, 2, 1, 3])

    def merge_heads(self, x: ir.Value) -> ir.Value:
        rows = self.op("Transpose", [x], perm=[0, 2, 1, 3])
        return self.op("Reshape", [rows, self.ints(0, 0, -1)])

    def parts(self, x: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value]:
        node = self.emit.node("Split", [x, self.ints(*sizes)], [""] * len(sizes), axis=axis)
        for made in node.outputs:
            made.type = self.type
        return list(node.outputs)

    def rows(self) -> ir.Value:
        """0 .. N-1, [N]."""
        size = self.emit.op("Squeeze", [self.emit.op("Shape", [self.tokens], start=1, end=2)])
        zero = self.emit.const("number.0", 0, np.int64)
        made = self.emit.op("Range", [zero, size, self.emit.const("number.1", 1, np.int64)])
        made.type = ir.TensorType(ir.DataType.INT64)
        return made

    def counted(self, start: ir.Value | None = None) -> ir.Value:
        """Positions [B, N] that count up from `start` [1], or from 0."""
        rows = self.rows() if start is None else self.emit.op("Add", [self.rows(), start])
        shape = self.emit.op("Shape", [self.tokens])
        made = self.emit.op("Expand", [rows, shape])
        made.type = ir.TensorType(ir.DataType.INT64)
        return made

    def rotate(self, x: ir.Value, tables: tuple[int, int], at: ir.Value, name: str) -> ir.Value:
        """A rotary embedding of heads [B, heads, N, D] by two inputs of the node."""
        return self.op(
            "RotaryEmbedding", [x, self.need(tables[0]), self.need(tables[1]), at],
            interleaved=self.int(name), rotary_embedding_dim=self.int("rotary_embedding_dim"),
        )  # fmt: skip

    def attend(
        self, heads: Sequence[ir.Value], mask: ir.Value | None, causal: bool, scale: float
    ) -> ir.Value:
        return self.op(
            "Attention", [*heads, *([mask] if mask is not None else [])],
            is_causal=int(causal), scale=scale or None, softcap=self.float("softcap") or None,
        )  # fmt: skip


def _group_query(c: _Contrib) -> None:
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


def _window(c: _Contrib, size: int) -> ir.Value:
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


def _multi_head(c: _Contrib) -> None:
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


def _packed_weights(c: _Contrib) -> None:
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


def _rotary(c: _Contrib) -> None:
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


def _gelu(approximate: str) -> Callable[[_Contrib], None]:
    def read(c: _Contrib) -> None:
        x, bias = c.need(0), c.input(1)
        x = x if bias is None else c.op("Add", [x, bias])
        c.done(c.op("Gelu", [x], approximate=approximate))

    return read


def _product(c: _Contrib) -> None:
    a, b = c.need(0), c.need(1)
    a, b = (_turned(c, v, n) for v, n in ((a, "transA"), (b, "transB")))
    out = c.op("MatMul", [a, b])
    alpha = c.float("alpha", 1.0)
    if alpha != 1.0:
        kind = (out.dtype or ir.DataType.FLOAT).numpy()
        out = c.op("Mul", [out, c.emit.const(f"alpha.{alpha}.{kind.name}", alpha, kind)])
    c.done(out)


def _turned(c: _Contrib, value: ir.Value, attribute: str) -> ir.Value:
    if not c.int(attribute):
        return value
    rank = len(value.shape) if value.shape is not None else 0
    if rank < 2:
        raise c.refuse("transposes a value of unknown rank")
    return c.op("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])


_READERS: dict[str, Callable[[_Contrib], None]] = {
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
