"""The ports of any exported decoder, brought to `tokens`, `positions` -> `logits`.

Inputs are told apart by what they do: token ids read the table with one row per logit, positions
reach a sine or the index of another table, caches are concatenated, and what is left of rank two or
four masks. Caches become empty, masks all-visible or causal: what a prefill without padding feeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import NotApplicable
from graftline.passes.emit import Emit
from graftline.passes.meaning import label, sizes_of

_KEEPS_IDS = frozenset(["Reshape", "Cast", "Unsqueeze", "Squeeze", "Identity", "Expand", "Flatten"])
_COMPARES = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_SUMS = frozenset({"CumSum", "ReduceSum"})


@dataclass(frozen=True)
class Entry:
    """The canonical inputs, whether positions were an input before, and the names they had."""

    tokens: ir.Value
    positions: ir.Value
    own_positions: bool
    names: dict[str, str]


def enter(model: ir.Model) -> Entry:
    """Give the graph its canonical inputs and its one output.

    Raises NotApplicable naming the input or output that is not understood.
    """
    graph = model.graph
    logits = _logits(graph)
    while graph.outputs:
        graph.outputs.pop()
    graph.outputs.append(logits)
    logits.name = "logits"
    common.RemoveUnusedNodesPass()(model)
    tokens = _tokens(graph, logits)
    positions = _positions(graph, tokens)
    own = positions is not None
    names = {"tokens": tokens.name or ""}
    if positions is not None:
        names["positions"] = positions.name or ""
    batch = tokens.shape[0] if tokens.shape is not None else None
    for value in list(graph.inputs):
        if value not in (tokens, positions):
            _replace_input(graph, value, tokens, batch)
    while graph.inputs:
        graph.inputs.pop()
    if positions is None:
        positions = ir.Value(name="positions")
    for value, name in ((tokens, "tokens"), (positions, "positions")):
        _widen(graph, value)
        value.name = name
        value.shape = ir.Shape(["B", "N"])
        value.type = ir.TensorType(ir.DataType.INT64)
        graph.inputs.append(value)
    common.RemoveUnusedNodesPass()(model)
    return Entry(tokens, positions, own, names)


def _logits(graph: ir.Graph) -> ir.Value:
    named = [v for v in graph.outputs if v.name == "logits"]
    floats = [v for v in graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    ranked = [v for v in floats if v.shape is None or len(v.shape) == 3]
    found = (named or ranked or [None])[0]
    if found is None or found.producer() is None:
        raise NotApplicable(
            "no output looks like logits [B, N, V]", [v.name or "" for v in graph.outputs]
        )
    return found


def _tokens(graph: ir.Graph, logits: ir.Value) -> ir.Value:
    rows: dict[ir.Value, int] = {}
    for value in graph.inputs:
        for node in _index_readers(value):
            table = node.inputs[0]
            shape = _table_shape(table)
            if shape is not None and len(shape) == 2:
                rows[value] = max(rows.get(value, 0), shape[0])
    if not rows:
        raise NotApplicable(
            "no input of token ids: no integer input reads an embedding table",
            [f"input {v.name}" for v in graph.inputs],
        )
    width = logits.shape[-1] if logits.shape is not None and len(logits.shape) else None
    exact = [v for v in rows if rows[v] == width]
    if len(exact) == 1:
        return exact[0]
    return max(rows, key=lambda v: rows[v])


def _index_readers(value: ir.Value) -> list[ir.Node]:
    found, todo = list[ir.Node](), [value]
    while todo:
        current = todo.pop()
        for node, index in current.uses():
            if node.op_type.startswith("Gather") and index == 1:
                found.append(node)
            elif index == 0 and node.op_type in _KEEPS_IDS:
                todo.extend(node.outputs)
    return found


def _table_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in ("Transpose", "Cast", "DequantizeLinear"):
            return None
        value = node.inputs[0]
    if value is None or value.const_value is None:
        return None
    return sizes_of(value.const_value)


def _positions(graph: ir.Graph, tokens: ir.Value) -> ir.Value | None:
    found = [
        v for v in graph.inputs
        if v is not tokens and (v.dtype is None or not v.dtype.is_floating_point())
        and v.shape is not None and len(v.shape) == 2
        and not _is_padding_mask(v) and _reaches_position_sink(v)
    ]  # fmt: skip
    if len(found) > 1:
        raise NotApplicable("several inputs act as positions", [f"input {v.name}" for v in found])
    return found[0] if found else None


def _is_padding_mask(value: ir.Value) -> bool:
    """Whether an input is summed or taken as true and false, as no position is."""
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type in _SUMS and index == 0:
                return True
            to = node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0
            if to == ir.DataType.BOOL.value:
                return True
            if index == 0 and node.op_type in _KEEPS_IDS:
                todo.extend(node.outputs)
    return False


def _hides(value: ir.Value) -> bool:
    """Whether an input acts as a padding mask: summed, compared with a constant, or subtracted."""
    todo, seen = [value], set[ir.Value]()
    while todo:
        for node, index in todo.pop().uses():
            to = node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0
            others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
            fixed = bool(others) and all(v.const_value is not None for v in others)
            if to == ir.DataType.BOOL.value or node.op_type in (*_SUMS, "Not"):
                return True
            if fixed and (node.op_type in ("Equal", *_COMPARES) or node.op_type == "Sub"):
                return node.op_type != "Sub" or index == 1
            if index == 0 and node.op_type in (*_KEEPS_IDS, "Slice"):
                fresh = [v for v in node.outputs if v not in seen]
                seen.update(fresh)
                todo.extend(fresh)
    return False


def _reaches_position_sink(value: ir.Value) -> bool:
    """Whether values of an input reach an angle or a table index other than through a sum, or are
    compared with each other."""
    seen, todo = {value}, [value]
    while todo:
        current = todo.pop()
        for node, index in current.uses():
            if node.op_type in ("Cos", "Sin") or (node.op_type.startswith("Gather") and index == 1):
                return True
            if node.op_type == "RotaryEmbedding":
                return True
            if node.op_type in _SUMS or node.op_type == "Shape":
                continue
            for out in node.outputs:
                if out not in seen:
                    seen.add(out)
                    todo.append(out)
    compared = (n for v in seen for n, _ in v.uses() if n.op_type in _COMPARES)
    return any(all(v in seen for v in node.inputs) for node in compared)


def _replace_input(
    graph: ir.Graph, value: ir.Value, tokens: ir.Value, batch: int | ir.SymbolicDim | None
) -> None:
    """Put in place of an input what a prefill without padding would feed."""
    first = next(iter(graph), None)
    if first is None:
        raise NotApplicable("the graph is empty")
    emit = Emit(graph, "canonicalize", at=first)
    shape = value.shape
    dtype = value.dtype or ir.DataType.FLOAT
    if not value.uses():
        return
    if shape is None:
        raise NotApplicable(f"input {value.name} has no shape", [f"input {value.name}"])
    whole = emit.op("Shape", [tokens])
    if len(shape) == 2 and _hides(value):
        new = _filled(emit, whole, 1, dtype)
    elif len(shape) == 1 and not dtype.is_floating_point() and not isinstance(shape[0], int):
        new = _arange(emit, whole, dtype)
    elif dtype.is_floating_point() and _is_cache(value):
        new = _empty_cache(emit, value, whole, batch)
    elif len(shape) == 4 and not any(isinstance(d, int) for d in list(shape)[2:]):
        new = _causal(emit, whole, dtype)
    else:
        raise NotApplicable(
            f"input {value.name} is neither tokens, positions, mask nor cache",
            [label(n) for n in value.consumers()],
        )
    ir.convenience.replace_all_uses_with(value, new)


def _is_cache(value: ir.Value) -> bool:
    """Whether an input is concatenated with something, as a cache is."""
    todo, seen = [value], set[ir.Value]()
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type == "Concat" or (node.op_type == "Attention" and index in (4, 5)):
                return True
            if node.op_type in ("Transpose", "Cast", "Reshape", "Identity"):
                out = node.outputs[0]
                if out not in seen:
                    seen.add(out)
                    todo.append(out)
    return False


def _filled(emit: Emit, shape: ir.Value, fill: int, dtype: ir.DataType) -> ir.Value:
    held = emit.op(
        "ConstantOfShape",
        [shape],
        value=ir.tensor(np.asarray([fill], np.int64)),
    )
    return emit.op("Cast", [held], to=dtype)


def _arange(emit: Emit, whole: ir.Value, dtype: ir.DataType) -> ir.Value:
    size = emit.op("Gather", [whole, emit.const("index.1", 1, np.int64)])
    zero, one = emit.const("zero", 0, np.int64), emit.const("one", 1, np.int64)
    return emit.op("Cast", [emit.op("Range", [zero, size, one])], to=dtype)


def _empty_cache(
    emit: Emit, value: ir.Value, whole: ir.Value, batch: int | ir.SymbolicDim | None
) -> ir.Value:
    dims = list(value.shape or ())
    free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    batches = [i for i in free if dims[i] == batch] or [i for i in free if i == 0]
    length = [i for i in free if i not in batches[:1]]
    if len(length) != 1:
        raise NotApplicable(
            f"cache input {value.name} {value.shape} must have one free dimension besides the batch"
        )
    parts: list[ir.Value] = []
    for i, dim in enumerate(dims):
        if i in batches[:1]:
            parts.append(
                emit.op(
                    "Slice",
                    [whole, emit.const("row.0", [0], np.int64), emit.const("row.1", [1], np.int64)],
                )
            )
        else:
            size = 0 if i in length else int(dim)  # type: ignore[arg-type]
            parts.append(emit.const(f"row.{size}", [size], np.int64))
    shape = emit.op("Concat", parts, axis=0)
    return _filled(emit, shape, 0, value.dtype or ir.DataType.FLOAT)


def _causal(emit: Emit, whole: ir.Value, dtype: ir.DataType) -> ir.Value:
    size = emit.op(
        "Slice", [whole, emit.const("row.1", [1], np.int64), emit.const("row.2", [2], np.int64)]
    )
    batch = emit.op(
        "Slice", [whole, emit.const("row.0", [0], np.int64), emit.const("row.1", [1], np.int64)]
    )
    shape = emit.op("Concat", [batch, emit.const("row.1", [1], np.int64), size, size], axis=0)
    ones = _filled(emit, shape, 1, ir.DataType.FLOAT)
    lower = emit.op("Cast", [emit.op("Trilu", [ones], upper=0)], to=ir.DataType.BOOL)
    if dtype == ir.DataType.BOOL:
        return lower
    none, lowest = np.float32(0), np.float32(-3e38 if dtype != ir.DataType.FLOAT16 else -65504)
    bias = emit.op(
        "Where", [lower, emit.const("mask.none", none), emit.const("mask.lowest", lowest)]
    )
    return bias if dtype == ir.DataType.FLOAT else emit.op("Cast", [bias], to=dtype)


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    """Let readers of a 32-bit input go on reading 32 bits from a 64-bit one."""
    if value.dtype in (None, ir.DataType.INT64) or not value.uses():
        return
    first = next(iter(graph))
    readers = list(value.uses())
    cast = Emit(graph, "canonicalize", at=first).op("Cast", [value], to=value.dtype)
    for node, index in readers:
        if node.op_type not in ("Shape", "Gather"):
            node.replace_input_with(index, cast)
