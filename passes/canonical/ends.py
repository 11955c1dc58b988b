"""Both ends of a decoder: positions added to the embedding, and logits at every position."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graftline.errors import DoesNotRun, NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical.lengths import (
    above,
    constants_above,
    ids_held,
    lengths_around,
    marked_ids,
    token_ids,
)
from graftline.passes.canonical.shapes import SIZES, Measures
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import World, label, label_value, sizes_of
from graftline.passes.graph.mismatch import Mismatch

_TABLE_BYTES = 1 << 28
_TABLE = "position_table."
_IDS = 24
_COMBINES = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Where", "Min", "Max", "And", "Or", "MatMul", "Sum", "Mean",
})  # fmt: skip
"""Operators that combine activations with values per position."""
_PASSED = frozenset({"Cast", "Tanh", "Mul", "Div", "Add", "Sub", "Reshape", "Unsqueeze", "Squeeze"})


def settle_positions(
    graph: ir.Graph, measures: Measures, hidden: set[ir.Value], own: bool, rows: int
) -> None:
    """Every value per position that activations are combined with is a table read at `positions`.

    Raises NotApplicable for what depends on more than each position itself.
    """
    for node in list(graph):
        if node.outputs[0] not in hidden or node.op_type not in (*_COMBINES, "Concat"):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value in hidden or not _has_rows(value, measures):
                continue
            if node.op_type == "Concat":
                raise NotApplicable(
                    "a value per position is concatenated to activations",
                    [label(node), label_value(value)],
                )
            settled = _settled(graph, node, value, measures, own, rows)
            if isinstance(settled, Mismatch):
                raise settled.error()
            node.replace_input_with(index, settled)
        _drop_ones(node)


def _has_rows(value: ir.Value, measures: Measures) -> bool:
    if value.const_value is not None or _is_look_up(value, measures.positions):
        return False
    return "N" in (measures.dims(value) or [])


def _is_look_up(value: ir.Value, positions: ir.Value) -> bool:
    """Whether a value is a constant table read at `positions` and spread over heads."""
    node = value.producer()
    read = node.inputs[0] if node is not None and node.op_type == "Unsqueeze" else None
    gather = read.producer() if read is not None else None
    if gather is None or gather.op_type != "Gather" or gather.inputs[1] is not positions:
        return False
    table = gather.inputs[0]
    return table is not None and table.const_value is not None


def _settled(
    graph: ir.Graph, node: ir.Node, value: ir.Value, measures: Measures, own: bool, rows: int
) -> ir.Value | Mismatch:
    """A value per position as a learned table, or as what it is at positions 0 .. P-1."""
    both = [node, value]
    inside, out = measures.dims(value) or [], measures.dims(node.outputs[0]) or []
    if inside.count("N") > 1:
        why = "tokens are mixed with each other by something that is not an attention"
        return Mismatch.over(both, why)
    axis = inside.index("N")
    if len(out) - len(inside) + axis != 1 or out[:2] != ["B", "N"]:
        return Mismatch.over(both, "a value per position meets activations in another layout")
    if _changes_with_ids(value, measures):
        return Mismatch.over(both, "a value per position depends on token values")
    learned = _learned(graph, node, value, measures, own)
    if not isinstance(learned, Mismatch):
        return learned
    tabulated = _tabulated(graph, node, value, measures, own, rows)
    if isinstance(tabulated, Mismatch):
        names = [label(node), label_value(value)]
        why = f"{tabulated.reason}, and as a table of the host {learned.text}"
        return Mismatch(names[0], why, tuple(names[1:]))
    return tabulated


def _changes_with_ids(value: ir.Value, measures: Measures) -> bool:
    """Whether a value changes with the ids, drawn from all that they are compared with."""
    if not any(
        node is not None and measures.tokens in node.inputs and node.op_type != "Shape"
        for node in (v.producer() for v in above([value]))
    ):
        return False
    constants = constants_above([value]) | marked_ids([value])
    held = ids_held(measures)
    plain = measures.world(2, _IDS).value(value)
    for seed in range(8):
        world = measures.world(2, _IDS)
        world.known[measures.tokens] = token_ids(constants, held, 2, _IDS, seed)
        if not np.array_equal(world.value(value), plain):
            return True
    return False


def _learned(
    graph: ir.Graph, at: ir.Node, value: ir.Value, measures: Measures, own: bool
) -> ir.Value | Mismatch:
    """The value as table[positions + offset], proved with each table row replaced by its number."""
    table = _table(value) if at.op_type == "Add" else None
    if table is None or table.const_value is None:
        return Mismatch.at(value, "it is not the rows of one matrix, added")
    shape = sizes_of(table.const_value)
    numbers = np.broadcast_to(np.arange(shape[0], dtype=np.float32)[:, None], shape)
    offsets: set[int] = set()
    for world, at_positions in _worlds(value, measures, own, shape[0]):
        world.known[table] = numbers
        try:
            read = world.value(value)
        except DoesNotRun:
            if not offsets:
                raise
            break  # an offset into the table leaves fewer positions than it has rows
        flat = np.broadcast_to(read, (*at_positions.shape, shape[1]))
        off = flat[..., 0] - at_positions
        if (flat != flat[..., :1]).any() or (off != off.reshape(-1)[0]).any():
            return Mismatch.at(value, "it does not read one row of the matrix for each position")
        offsets.add(int(off.reshape(-1)[0]))
    if len(offsets) != 1:
        return Mismatch.at(value, "the rows it reads of the matrix depend on the length")
    emit, offset = Emit(graph, "canonicalize", at=at), offsets.pop()
    ids = measures.positions
    if offset:
        ids = emit.op("Add", [ids, emit.const(f"offset.{offset}", offset, np.int64)])
        ids.type = ir.TensorType(ir.DataType.INT64)
    new = emit.op("Gather", [table, ids], axis=0)
    new.type = value.type
    return new


def _worlds(
    value: ir.Value, measures: Measures, own: bool, rows: int
) -> Iterator[tuple[World, Array]]:
    """Worlds around every constant above a value, of at most `rows` positions; positions out of
    order first, where they are an input of the host."""
    if own:
        world = measures.world(*SIZES[0])
        world.known[measures.positions] = np.asarray([[4, 1, 0, 3, 2], [0, 0, 1, 6, 2]], np.int64)
        yield world, world.known[measures.positions]
    for length in lengths_around(constants_above([value])):
        if length <= rows:
            world = measures.world(2 if length <= _IDS else 1, length)
            yield world, world.known[measures.positions]


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
) -> ir.Value | Mismatch:
    """The value at positions 0 .. P-1 as a table."""
    inside = measures.dims(value) or []
    rest = measures.shape(value)[inside.index("N") + 1 :]
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if rows * math.prod(rest) * dtype.itemsize > _TABLE_BYTES:
        return Mismatch.at(at, "positions are computed through values too large to tabulate")
    table = measures.world(1, rows).value(value).reshape(rows, *rest)
    limit = 1e-6 * max(1.0, float(np.abs(table).max(initial=0))) if dtype.kind == "f" else 0
    for world, positions in _worlds(value, measures, own, rows):
        got = np.broadcast_to(world.value(value), (*positions.shape, *rest))
        if not np.allclose(got, table[positions], rtol=0, atol=limit):
            why = "a value per position depends on more than each token's own position"
            return Mismatch.over([at, value], why)
    emit = Emit(graph, "canonicalize", at=at)
    held = emit.const(f"{_TABLE}{at.outputs[0].name}", table, table.dtype)
    new = emit.op("Gather", [held, measures.positions], axis=0)
    new.type = value.type
    return new


def _drop_ones(node: ir.Node) -> None:
    """Drop a product with a table of ones."""
    for index, value in enumerate(node.inputs if node.op_type == "Mul" else ()):
        gather = value.producer() if value is not None else None
        table = gather.inputs[0] if gather is not None and gather.op_type == "Gather" else None
        other = node.inputs[1 - index]
        if table is None or table.const_value is None or other is None:
            continue
        made_here = (table.name or "").startswith(_TABLE)
        if made_here and (table.const_value.numpy() == 1).all():
            ir.convenience.replace_all_uses_with(node.outputs[0], other)
            return


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
