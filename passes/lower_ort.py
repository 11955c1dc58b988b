"""lower-ort: from canonical ops to ONNX Runtime's fused ones.

Attention over a TensorScatter cache becomes GroupQueryAttention (rotary inside, packed query, key
and value where they come from one projection, past and present in one buffer); residual Add + norm
becomes Skip(Simplified)LayerNormalization; MatMul by a transposed weight becomes FusedMatMul, which
reads the checkpoint's own layout. Ports do not change. A host whose heads or caches do not fit
GroupQueryAttention keeps its Attention nodes, which ONNX Runtime runs too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable, nearest
from graftline.evaluate import Feed
from graftline.passes.anchors import with_role
from graftline.passes.emit import Emit, drop_unused, find_input
from graftline.passes.graft import BLOCK, ROLE, Graft, WeightFreeLaw
from graftline.passes.masks import MASK_KEY, meaning
from graftline.passes.operators import inline
from graftline.passes.precision import PRECISIONS, cast_caches, narrow
from graftline.passes.rotary_law import tables
from graftline.passes.weights import matrix

MICROSOFT = "com.microsoft"
PROVIDERS = ("cpu", "cuda")


@dataclass(frozen=True)
class LowerOrt(Graft):
    """ONNX Runtime's fused ops: one attention op per layer, norms with their residual Add.

    `provider` is cpu or cuda, whose GroupQueryAttention has no fp32 kernel: at fp32 it keeps
    Attention over a TensorScatter cache. `dtype` is fp32, fp16 or bf16 (weights, activations and
    caches). Neutral: the caches in that type.
    """

    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (tables,)

    provider: str = "cpu"
    dtype: str = "fp32"

    def requires(self, model: ir.Model) -> None:
        if find_input(model.graph, "write_index") is None:
            raise NotApplicable("lower-ort needs a cache; put kv-cache before it")
        for name, value, known in (
            ("provider", self.provider, PROVIDERS), ("dtype", self.dtype, PRECISIONS),
        ):  # fmt: skip
            if value not in known:
                raise NotApplicable(f"lower-ort has no {name} '{value}'{nearest(value, known)}")

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        model.opset_imports[MICROSOFT] = 1
        inline(model, self.name())
        if self.dtype != "fp32":
            narrow(model, PRECISIONS[self.dtype], self.name())
        grouped = self.provider == "cpu" or self.dtype != "fp32"
        operands = [_Operands.of(node) for node in with_role(graph, "attention")]
        if grouped and all(o is not None for o in operands):
            lengths = _Lengths(graph, self.name())
            for found in operands:
                assert found is not None
                _group_query_attention(graph, found, lengths, self.name())
        drop_unused(model)
        for node in list(graph):
            if node.op_type in ("RMSNormalization", "LayerNormalization"):
                _skip_norm(graph, node, self.name())
        for node in list(graph):
            if node.op_type == "MatMul":
                _fused_matmul(graph, node, self.name())
        drop_unused(model)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return cast_caches(feed, after)


@dataclass
class _Operands:
    """An attention taken apart: rows before the rotary, tables, caches."""

    node: ir.Node
    fresh: tuple[ir.Value, ir.Value, ir.Value]
    """Query, key, value as [B, heads, N, D], before any rotary."""
    caches: tuple[ir.Value, ir.Value]
    scatters: tuple[ir.Node, ir.Node]
    rotary: ir.Node | None
    heads: tuple[int, int]
    head_size: int

    @classmethod
    def of(cls, node: ir.Node) -> _Operands | None:
        """The operands when they fit GroupQueryAttention, else None."""
        query, key, value, _ = node.inputs
        assert node.graph is not None
        index = find_input(node.graph, "write_index")
        scatters = [_scatter(v, index) for v in (key, value)]
        if query is None or scatters[0] is None or scatters[1] is None:
            return None
        (keys, fresh_key), (values, fresh_value) = (_two(s) for s in scatters if s is not None)
        sizes = [_heads_and_size(v) for v in (query, keys, values)]
        if any(s is None for s in sizes):
            return None
        (heads, size), (kv_heads, _), _ = (s for s in sizes if s is not None)
        if {s[1] for s in sizes if s is not None} != {size} or size % 8 or heads % kv_heads:
            return None
        rotary = _common_rotary(query, fresh_key) if size % 16 == 0 else None
        if rotary is not None and not _fits_kernel(rotary):
            rotary = None
        if rotary is not None:
            query, fresh_key = _before(query), _before(fresh_key)
        fresh = (query, fresh_key, fresh_value)
        both = (scatters[0], scatters[1])
        return cls(node, fresh, (keys, values), both, rotary, (heads, kv_heads), size)


def _fits_kernel(rotary: ir.Node) -> bool:
    """GroupQueryAttention turns a multiple of 16 of a head's numbers (8 columns of the table)."""
    table = rotary.inputs[1]
    columns = table.shape[-1] if table is not None and table.shape is not None else None
    return isinstance(columns, int) and columns % 8 == 0


def _scatter(value: ir.Value | None, index: ir.Value | None) -> ir.Node | None:
    """The TensorScatter that writes new rows of a cache from slot `index` on, which is where
    GroupQueryAttention writes them; None for another node, index, axis or mode."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "TensorScatter" or len(maker.inputs) != 3:
        return None
    fits = maker.inputs[2] is index and maker.attributes.get_int("axis", -2) in (2, -2)
    return maker if fits and maker.attributes.get_string("mode", "linear") == "linear" else None


def _two(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The first two inputs of a node that has them."""
    first, second = node.inputs[:2]
    assert first is not None
    assert second is not None
    return first, second


def _before(value: ir.Value) -> ir.Value:
    """The first input of the node that makes `value`."""
    maker = value.producer()
    assert maker is not None
    return _two(maker)[0]


def _heads_and_size(value: ir.Value) -> tuple[int, int] | None:
    """(heads, head size) of [B, heads, ., D], or None where they are not known."""
    shape = value.shape
    if shape is None or len(shape) != 4:
        return None
    heads, size = shape[1], shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None


def _common_rotary(query: ir.Value | None, key: ir.Value | None) -> ir.Node | None:
    """The rotary both query and key go through with the same tables, or None."""
    nodes = [v.producer() if v is not None else None for v in (query, key)]
    first, second = nodes
    if first is None or second is None or {first.op_type, second.op_type} != {"RotaryEmbedding"}:
        return None
    same = list(first.inputs[1:]) == list(second.inputs[1:]) and len(first.inputs) == 4
    flags = [n.attributes.get("interleaved") for n in (first, second)]
    odd = flags[0] is not None and flags[1] is not None and flags[0].as_int() != flags[1].as_int()
    return first if same and not odd else None


@dataclass
class _Lengths:
    """seqlens_k [B] and total_sequence_length [] int32, and mask biases cut to the total length."""

    graph: ir.Graph
    by: str
    seqlens: ir.Value = field(init=False)
    total: ir.Value = field(init=False)
    biases: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        emit = Emit(self.graph, self.by, self.graph[0], block="shared")
        self.anchor = self.graph[0]
        tokens, start = find_input(self.graph, "tokens"), find_input(self.graph, "write_index")
        assert tokens is not None
        assert start is not None
        rows = emit.op("Shape", [tokens], start=1, end=2)
        self.total64 = emit.op("Add", [emit.op("ReduceMax", [start], keepdims=1), rows])
        one = emit.const("axes.1", [1], np.int64)
        last = emit.op("Sub", [emit.op("Add", [start, rows]), one])
        self.seqlens = emit.op("Cast", [last], "seqlens_k", to=ir.DataType.INT32)
        scalar = emit.op("Squeeze", [self.total64])
        self.total = emit.op("Cast", [scalar], "total_length", to=ir.DataType.INT32)

    def bias(self, mask: ir.Value, at: ir.Node) -> ir.Value:
        """[B, 1 or heads, N, T] in the type of the queries of `at`, from a mask over S slots; made
        once per mask."""
        if mask not in self.biases:
            emit = Emit(self.graph, self.by, at, block="shared")
            zero, axis = emit.const("axes.0", [0], np.int64), emit.const("axes.3", [3], np.int64)
            cut = emit.op("Slice", [mask, zero, self.total64, axis])
            if mask.dtype == ir.DataType.BOOL:
                kind = at.inputs[0].dtype if at.inputs[0] is not None else None
                dtype = (kind or ir.DataType.FLOAT).numpy()
                lowest = np.finfo(np.float32 if dtype == np.float32 else np.float16).min
                seen = emit.const("bias.seen", 0.0, dtype)
                hidden = emit.const("bias.hidden", lowest, dtype)
                cut = emit.op("Where", [cut, seen, hidden])
            self.biases[mask] = cut
        return self.biases[mask]


def _group_query_attention(graph: ir.Graph, found: _Operands, lengths: _Lengths, by: str) -> None:
    node = found.node
    emit = Emit(graph, by, node)
    packed = _packed(found)
    query, key, value = (
        (packed, None, None) if packed is not None else (_flat(emit, v) for v in found.fresh)
    )
    inputs: list[ir.Value | None] = [
        query,
        key,
        value,
        *found.caches,
        lengths.seqlens,
        lengths.total,
    ]
    cos, sin, positions = found.rotary.inputs[1:4] if found.rotary is not None else (None,) * 3
    inputs += [cos, sin, positions if cos is not None else None]
    says = meaning(node)
    tree = any(find_input(graph, name) is not None for name in ("mask", "parents"))
    mask = node.inputs[3]
    assert mask is not None
    if tree or says["kind"] in ("alibi", "formula"):
        inputs.append(lengths.bias(mask, node))
    while inputs[-1] is None:
        inputs.pop()
    options: dict[str, int | float] = {"num_heads": found.heads[0], "kv_num_heads": found.heads[1]}
    if says["kind"] == "window" and not tree:
        options["local_window_size"] = int(says["size"])
    for name in ("scale", "softcap"):
        if name in node.attributes:
            options[name] = node.attributes[name].as_float()
    if found.rotary is not None:
        flag = found.rotary.attributes.get("interleaved")
        options |= {"do_rotary": 1, "rotary_interleaved": flag.as_int() if flag is not None else 0}
    made = emit.node("GroupQueryAttention", inputs, ["", "", ""], MICROSOFT, **options)
    made.metadata_props[ROLE] = "attention"
    made.metadata_props[MASK_KEY] = node.metadata_props.get(MASK_KEY, "")
    _replace_output(emit, node, made.outputs[0], found)
    _replace_caches(graph, found, made)


def _packed(found: _Operands) -> ir.Value | None:
    """The one projection whose Split gives query, key and value in order, or None."""
    sources = [_rows_of(v) for v in found.fresh]
    makers = {s.producer() for s in sources if s is not None}
    split = makers.pop() if len(makers) == 1 else None
    if None in sources or split is None or split.op_type != "Split":
        return None
    return split.inputs[0] if list(split.outputs) == sources else None


def _rows_of(value: ir.Value) -> ir.Value | None:
    """[B, N, heads * D] from which Reshape and Transpose make `value`, or None."""
    turn = value.producer()
    if turn is None or turn.op_type != "Transpose" or _perm(turn) != [0, 2, 1, 3]:
        return None
    shape = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if shape is None or shape.op_type != "Reshape":
        return None
    rows = shape.inputs[0]
    return rows if rows is not None and rows.shape is not None and len(rows.shape) == 3 else None


def _perm(node: ir.Node) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(attribute.as_ints()) if attribute is not None else []


def _flat(emit: Emit, value: ir.Value) -> ir.Value:
    """[B, heads, N, D] as [B, N, heads * D]; undoes the split it came from where there is one."""
    rows = _rows_of(value)
    if rows is not None:
        return rows
    turn = value.producer()
    if turn is not None and turn.op_type == "Transpose" and _perm(turn) == [0, 2, 1, 3]:
        source = turn.inputs[0]
        assert source is not None
    else:
        source = emit.op("Transpose", [value], perm=[0, 2, 1, 3])
    assert value.shape is not None
    width = int(value.shape[1]) * int(value.shape[3])  # type: ignore[arg-type]
    return emit.op("Reshape", [source, emit.const(f"join.{width}", [0, 0, width], np.int64)])


def _replace_output(emit: Emit, node: ir.Node, rows: ir.Value, found: _Operands) -> None:
    """Give [B, N, heads * D] to whoever joined the heads; split them again for anybody else."""
    width = found.heads[0] * found.head_size
    old = node.outputs[0]
    for turn in list(old.consumers()):
        joins = turn.outputs[0].consumers() if turn.op_type == "Transpose" else []
        if _perm(turn) == [0, 2, 1, 3] and joins and all(_joins(j, width) for j in joins):
            for join in list(joins):
                join.outputs[0].replace_all_uses_with(rows)
    if any(user.outputs[0].uses() or user.outputs[0].is_graph_output() for user in old.consumers()):
        shape = emit.const(
            f"split.{found.heads[0]}.{found.head_size}",
            [0, 0, found.heads[0], found.head_size],
            np.int64,
        )
        heads = emit.op("Transpose", [emit.op("Reshape", [rows, shape])], perm=[0, 2, 1, 3])
        old.replace_all_uses_with(heads)


def _joins(node: ir.Node, width: int) -> bool:
    shape = node.outputs[0].shape
    return node.op_type == "Reshape" and shape is not None and len(shape) == 3 and shape[2] == width


def _replace_caches(graph: ir.Graph, found: _Operands, made: ir.Node) -> None:
    for scatter, present in zip(found.scatters, made.outputs[1:], strict=True):
        written = scatter.outputs[0]
        name = written.name
        present.shape, present.type = written.shape, written.type
        written.name = f"{name}.canonical"
        present.name = name
        written.replace_all_uses_with(present, replace_graph_outputs=True)


def _skip_norm(graph: ir.Graph, node: ir.Node, by: str) -> None:
    """norm(a + b) as one op that also gives a + b."""
    total = node.inputs[0]
    add = total.producer() if total is not None else None
    if total is None or add is None or add.op_type != "Add" or not _last_axis(node):
        return
    left, right = add.inputs
    if left is None or right is None or not _same_rows(left, right):
        return
    emit = Emit(graph, by, add, block=add.metadata_props.get(BLOCK))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    simple = node.op_type == "RMSNormalization"
    op_type = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
    inputs = [left, right, *node.inputs[1:3]]
    if any(v is None or v.producer() is not None for v in inputs[2:]):
        return
    made = emit.node(op_type, inputs, ["", "", "", ""], MICROSOFT, epsilon=epsilon)
    for old, new in ((node, made.outputs[0]), (add, made.outputs[3])):
        new.shape, new.type = old.outputs[0].shape, old.outputs[0].type
        role = old.metadata_props.pop(ROLE, None)
        if role is not None:
            made.metadata_props[ROLE] = role
        old.outputs[0].replace_all_uses_with(new, replace_graph_outputs=True)


def _last_axis(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, 2)


def _same_rows(left: ir.Value, right: ir.Value) -> bool:
    shapes = [v.shape for v in (left, right)]
    if any(s is None or len(s) != 3 or not isinstance(s[2], int) for s in shapes):
        return False
    constants = [v.producer() is None and not v.is_graph_input() for v in (left, right)]
    return shapes[0][2] == shapes[1][2] and not any(constants)  # type: ignore[index]


def _fused_matmul(graph: ir.Graph, node: ir.Node, by: str) -> None:
    weight = matrix(node.inputs[1])
    if weight is None or not weight.turned:
        return
    emit = Emit(graph, by, node)
    out = node.outputs[0]
    made = emit.node("FusedMatMul", [node.inputs[0], weight.stored], [""], MICROSOFT, transB=1)
    made.metadata_props.update({k: v for k, v in node.metadata_props.items() if k == ROLE})
    new = made.outputs[0]
    name, new.shape, new.type = out.name, out.shape, out.type
    out.name = f"{name}.canonical"
    new.name = name
    out.replace_all_uses_with(new, replace_graph_outputs=True)
