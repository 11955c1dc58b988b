"""GroupQueryAttention in place of Attention over a TensorScatter cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops.operands import MICROSOFT
from graftline.errors import NotApplicable
from graftline.owners import TARGET
from graftline.passes.grafts.masks import HELD_MASK, MASK_KEY, meaning
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import port_of, value_of
from graftline.passes.lower.ort.operands import Operands, permutation, rows_of
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import read_ports, step_port


@dataclass
class Lengths:
    """seqlens_k [B] and total_sequence_length [] int32 of a step that writes from slot `start` [B]
    on, and mask biases cut to the total length."""

    model: ir.Model
    start: ir.Value
    by: str
    graph: ir.Graph = field(init=False)
    owner: str = field(init=False)
    """Whose step it is."""
    seqlens: ir.Value = field(init=False)
    total: ir.Value = field(init=False)
    biases: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph, start = self.model.graph, self.start
        ports = [p for p in read_ports(self.model) if p.direction == "in"]
        self.owner = next(p.owner for p in ports if p.name == start.name)
        step = step_port(ports, self.owner)
        if step is None:
            why = f"no input of '{self.owner}' has a row for each new position"
            raise NotApplicable(f"lower-ort: {why}")
        prefix = "" if self.owner == TARGET else f"{self.owner}."
        emit = Emit(self.graph, self.by, self.graph[0], block="shared")
        rows = emit.op("Shape", [value_of(self.model, step)], start=1, end=2)
        self.total64 = emit.op("Add", [emit.op("ReduceMax", [start], keepdims=1), rows])
        one = emit.const("axes.1", [1], np.int64)
        last = emit.op("Sub", [emit.op("Add", [start, rows]), one])
        self.seqlens = emit.op("Cast", [last], f"{prefix}seqlens_k", to=ir.DataType.INT32)
        scalar = emit.op("Squeeze", [self.total64])
        self.total = emit.op("Cast", [scalar], f"{prefix}total_length", to=ir.DataType.INT32)

    def bias(self, mask: ir.Value, at: ir.Node) -> ir.Value:
        """[B, 1 or heads, N, T] in the type of the queries of `at`, from a mask over S slots; made
        once per mask."""
        if mask not in self.biases:
            emit = Emit(self.graph, self.by, at, block="shared")
            zero, axis = emit.const("axes.0", [0], np.int64), emit.const("axes.3", [3], np.int64)
            cut = emit.op("Slice", [mask, zero, self.total64, axis])
            if mask.dtype == ir.DataType.BOOL:
                dtype = query_type(at).numpy()
                lowest = np.finfo(np.float32 if dtype == np.float32 else np.float16).min
                seen = emit.const("bias.seen", 0.0, dtype)
                hidden = emit.const("bias.hidden", lowest, dtype)
                cut = emit.op("Where", [cut, seen, hidden])
            self.biases[mask] = cut
        return self.biases[mask]


def cut_to_length(graph: ir.Graph, node: ir.Node, lengths: Lengths, by: str) -> None:
    """Let an Attention read of its caches, and of the mask over them, only the slots in use: it
    pays for all that it reads."""
    emit = Emit(graph, by, node)
    start = emit.const("axes.0", [0], np.int64)
    for operand, axis in ((1, 2), (2, 2), (3, 3)):
        axes = emit.const(f"axes.{axis}", [axis], np.int64)
        cut = emit.op("Slice", [node.inputs[operand], start, lengths.total64, axes])
        node.replace_input_with(operand, cut)


def query_type(node: ir.Node) -> ir.DataType:
    """The element type of an attention's queries."""
    query = node.inputs[0]
    return (query.dtype if query is not None else None) or ir.DataType.FLOAT


def round_biases(graph: ir.Graph, nodes: Iterable[ir.Node], by: str) -> None:
    """Additive masks in the type of the queries they meet, the only one ONNX Runtime adds."""
    rounded: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in nodes:
        mask, dtype = node.inputs[3], query_type(node)
        if mask is None or mask.dtype in (ir.DataType.BOOL, dtype):
            continue
        if (mask, dtype) not in rounded:
            made = Emit(graph, by, node, block="shared").op("Cast", [mask], to=dtype)
            made.shape, made.type = mask.shape, ir.TensorType(dtype)
            rounded[mask, dtype] = made
        node.replace_input_with(3, rounded[mask, dtype])


def group_query_attention(graph: ir.Graph, found: Operands, lengths: Lengths, by: str) -> None:
    """Put a GroupQueryAttention in place of the attention that `found` takes apart."""
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
    roles = ("mask", "parents")
    tree = any(port_of(lengths.model, role, owner=lengths.owner) is not None for role in roles)
    mask = node.inputs[3]
    assert mask is not None
    if tree or says["kind"] in ("alibi", "formula", HELD_MASK):
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


def _packed(found: Operands) -> ir.Value | None:
    """The one projection whose Split gives query, key and value in order, or None."""
    sources = [rows_of(v) for v in found.fresh]
    makers = {s.producer() for s in sources if s is not None}
    split = makers.pop() if len(makers) == 1 else None
    if None in sources or split is None or split.op_type != "Split":
        return None
    return split.inputs[0] if list(split.outputs) == sources else None


def _flat(emit: Emit, value: ir.Value) -> ir.Value:
    """[B, heads, N, D] as [B, N, heads * D]; undoes the split it came from where there is one."""
    rows = rows_of(value)
    if rows is not None:
        return rows
    turn = value.producer()
    if turn is not None and turn.op_type == "Transpose" and permutation(turn) == [0, 2, 1, 3]:
        source = turn.inputs[0]
        assert source is not None
    else:
        source = emit.op("Transpose", [value], perm=[0, 2, 1, 3])
    assert value.shape is not None
    width = int(value.shape[1]) * int(value.shape[3])  # type: ignore[arg-type]
    return emit.op("Reshape", [source, emit.const(f"join.{width}", [0, 0, width], np.int64)])


def _replace_output(emit: Emit, node: ir.Node, rows: ir.Value, found: Operands) -> None:
    """Give [B, N, heads * D] to whoever joined the heads; split them again for anybody else."""
    width = found.heads[0] * found.head_size
    old = node.outputs[0]
    for turn in list(old.consumers()):
        joins = turn.outputs[0].consumers() if turn.op_type == "Transpose" else []
        if permutation(turn) == [0, 2, 1, 3] and joins and all(_joins(j, width) for j in joins):
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
    joined = node.op_type == "Reshape" and not node.outputs[0].is_graph_output()
    return joined and shape is not None and len(shape) == 3 and shape[2] == width


def _replace_caches(graph: ir.Graph, found: Operands, made: ir.Node) -> None:
    for scatter, present in zip(found.scatters, made.outputs[1:], strict=True):
        written = scatter.outputs[0]
        name = written.name
        present.shape, present.type = written.shape, written.type
        written.name = f"{name}.canonical"
        present.name = name
        written.replace_all_uses_with(present, replace_graph_outputs=True)
