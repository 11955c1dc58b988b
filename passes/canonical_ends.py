"""Both ends of a decoder: positions added to the embedding, and logits at every position."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical_shapes import SIZES, Measures
from graftline.passes.emit import Emit
from graftline.passes.meaning import World, label, label_value, sizes_of

_TABLE_BYTES = 1 << 28
_PASSED = frozenset({"Cast", "Tanh", "Mul", "Div", "Add", "Sub", "Reshape", "Unsqueeze", "Squeeze"})


def settle_positions(
    graph: ir.Graph, measures: Measures, hidden: set[ir.Value], own: bool, rows: int
) -> None:
    """Every vector that is added per position comes from a table read at `positions`."""
    for node in list(graph):
        if node.outputs[0] not in hidden:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value in hidden or not _per_position(value, measures):
                continue
            if node.op_type == "Add":
                new = _learned(graph, node, value, measures, own)
                new = new or _tabulated(graph, node, value, measures, own, rows)
                node.replace_input_with(index, new)
            elif node.op_type == "Mul" and _all_ones(value, measures):
                other = node.inputs[1 - index]
                if other is not None:
                    ir.convenience.replace_all_uses_with(node.outputs[0], other)


def _per_position(value: ir.Value, measures: Measures) -> bool:
    if value.const_value is not None or value is measures.positions:
        return False
    if value.dtype is not None and not value.dtype.is_floating_point():
        return False
    dims = measures.dims(value)
    return dims is not None and len(dims) in (2, 3) and dims[-2] == "N" and dims[-1] != "N"


def _learned(
    graph: ir.Graph, at: ir.Node, value: ir.Value, measures: Measures, own: bool
) -> ir.Value | None:
    """The value as table[positions + offset], proved with each table row replaced by its number."""
    table = _table(value)
    if table is None or table.const_value is None:
        return None
    shape = sizes_of(table.const_value)
    numbers = np.broadcast_to(np.arange(shape[0], dtype=np.float32)[:, None], shape)
    offsets: set[int] = set()
    for world, at_positions in _worlds(measures, own):
        world.known[table] = numbers
        read = world.value(value)
        flat = np.broadcast_to(read, (*at_positions.shape, shape[1]))
        off = flat[..., 0] - at_positions
        if (flat != flat[..., :1]).any() or (off != off.reshape(-1)[0]).any():
            return None
        offsets.add(int(off.reshape(-1)[0]))
    if len(offsets) != 1:
        return None
    emit, offset = Emit(graph, "canonicalize", at=at), offsets.pop()
    ids = measures.positions
    if offset:
        ids = emit.op("Add", [ids, emit.const(f"offset.{offset}", offset, np.int64)])
        ids.type = ir.TensorType(ir.DataType.INT64)
    new = emit.op("Gather", [table, ids], axis=0)
    new.type = value.type
    return new


def _worlds(measures: Measures, own: bool) -> list[tuple[World, Array]]:
    out: list[tuple[World, Array]] = []
    for batch, length in SIZES[:2]:
        world = measures.world(batch, length)
        out.append((world, world.known[measures.positions]))
    if own:
        batch, length = SIZES[0]
        world = measures.world(batch, length)
        world.known[measures.positions] = np.asarray([[4, 1, 0, 3, 2], [0, 0, 1, 6, 2]], np.int64)
        out.append((world, world.known[measures.positions]))
    return out


def _table(value: ir.Value) -> ir.Value | None:
    """The only two-dimensional table gathered above a value."""
    found, seen, todo = set[ir.Value](), set[ir.Value](), [value]
    while todo:
        node = todo.pop().producer()
        if node is None:
            continue
        data = node.inputs[0] if node.inputs else None
        if node.op_type == "Gather" and data is not None and data.const_value is not None:
            found.update([data] if _is_float_table(data) else [])
            if _is_float_table(data):
                continue
        for v in node.inputs:
            if v is not None and v not in seen:
                seen.add(v)
                todo.append(v)
    return found.pop() if len(found) == 1 else None


def _is_float_table(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point()


def _tabulated(
    graph: ir.Graph, at: ir.Node, value: ir.Value, measures: Measures, own: bool, rows: int
) -> ir.Value:
    """The value at positions 0 .. P-1 as a table. Raises NotApplicable when there is none."""
    width = measures.shape(value)[-1]
    if rows * width * 4 > _TABLE_BYTES:
        raise NotApplicable("positions are computed in too wide a way to tabulate", [label(at)])
    table = measures.world(1, rows).value(value).reshape(rows, width)
    for world, positions in _worlds(measures, own):
        got = np.broadcast_to(world.value(value), (*positions.shape, width))
        if not np.allclose(got, table[positions], atol=1e-5):
            raise NotApplicable(
                "what is added to the embedding depends on more than each token's own position",
                [label_value(value)],
            )
    emit = Emit(graph, "canonicalize", at=at)
    held = emit.const(f"position_table.{at.outputs[0].name}", table, table.dtype)
    new = emit.op("Gather", [held, measures.positions], axis=0)
    new.type = value.type
    return new


def _all_ones(value: ir.Value, measures: Measures) -> bool:
    try:
        return all(bool((measures.world(b, n).value(value) == 1).all()) for b, n in SIZES[:2])
    except CannotEvaluate:
        return False


def open_head(graph: ir.Graph, logits: ir.Value, measures: Measures, hidden: set[ir.Value]) -> bool:
    """Remove the choice of the last position around the head; True when there was one."""
    changed, value = False, logits
    while (node := value.producer()) is not None:
        sources = [v for v in node.inputs if v is not None and v in hidden]
        if len(sources) != 1:
            break
        source = sources[0]
        if _picks_rows(node, source, measures):
            if value.is_graph_output():
                graph.outputs[0] = source
                source.name, value.name = "logits", None
            ir.convenience.replace_all_uses_with(value, source)
            changed = True
        elif node.op_type not in _PASSED and node.op_type not in ("MatMul", "Gemm", "MatMulNBits"):
            break
        value = source
    return changed


def _picks_rows(node: ir.Node, source: ir.Value, measures: Measures) -> bool:
    if node.op_type not in ("Slice", "Gather", "GatherElements", "GatherND", "Split"):
        return False
    before, after = measures.dims(source), measures.dims(node.outputs[0])
    return before is not None and before[:2] == ["B", "N"] and (after or [])[:2] != ["B", "N"]


def own_head_weight(graph: ir.Graph, logits: ir.Value, hidden: set[ir.Value]) -> None:
    """Give a head that shares the embedding's table a name of its own for the same tensor."""
    value: ir.Value | None = logits
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("MatMul", "Gemm"):
            _separate(graph, node)
            return
        sources = [v for v in node.inputs if v is not None and v in hidden]
        value = sources[0] if len(sources) == 1 else None


def _separate(graph: ir.Graph, head: ir.Node) -> None:
    weight = head.inputs[1]
    transpose = weight.producer() if weight is not None else None
    table = transpose.inputs[0] if transpose is not None else weight
    if table is None or table.const_value is None:
        return
    shared = any(n.op_type == "Gather" and i == 0 for n, i in table.uses())
    if not shared:
        return
    name = "lm_head.weight"
    while name in graph.initializers:
        name += ".own"
    view = Emit(graph, "canonicalize").initializer(name, table.const_value)
    if transpose is None:
        head.replace_input_with(1, view)
        return
    emit = Emit(graph, "canonicalize", at=head)
    perm = transpose.attributes.get_ints("perm", (1, 0))
    turned = emit.op("Transpose", [view], perm=list(perm or (1, 0)))
    turned.type, turned.shape = table.type, ir.Shape(list(reversed(view.shape or ())))
    head.replace_input_with(1, turned)
