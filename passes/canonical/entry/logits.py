"""Which output holds the logits; and what a graph is that has none.

Logits are what a matrix makes whose columns are the rows of the token table, and nothing but casts,
scales, caps and choices of rows stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.graph.meaning import label, sizes_of
from graftline.passes.graph.mismatch import Mismatch

KEEPS_IDS = frozenset(["Reshape", "Cast", "Unsqueeze", "Squeeze", "Identity", "Expand", "Flatten"])
_TABLE_OPS = frozenset({"Transpose", "Cast", "DequantizeLinear", "Identity"})
_AFTER_HEAD = frozenset([
    "Cast", "Tanh", "Mul", "Div", "Add", "Sub", "Reshape", "Unsqueeze", "Squeeze", "Identity",
    "Slice", "Gather", "GatherElements", "GatherND", "Split", "Where", "Clip",
])  # fmt: skip
_REASONS = 3
_NEAR = 1.25
"""Tables and heads of one vocabulary may be padded differently, by a few per cent at most."""


@dataclass(frozen=True)
class Ends:
    """Where a decoder begins and ends: its token ids and its logits [.., V]."""

    tokens: ir.Value
    logits: ir.Value
    vocabulary: int


def find_ends(graph: ir.Graph, stated: int = 0) -> Ends | Mismatch:
    """The token ids and the logits, told by the token table that the head's matrix fits; or what
    the graph is instead of a decoder, and why its inputs and outputs are none of these. `stated`:
    how many tokens the host's facts say that it scores, which may be fewer than its table has."""
    read = {v: _tables(v) for v in graph.inputs}
    tables = {v: rows for v, rows in read.items() if not isinstance(rows, Mismatch)}
    if not tables:
        near = [m.text for m in read.values() if isinstance(m, Mismatch)]
        inputs = [f"input {_told(v)}" for v in graph.inputs] or ["the graph"]
        why = _without_ids(graph) + (f" ({'; '.join(near[:_REASONS])})" if near else "")
        return Mismatch(inputs[0], why, tuple(inputs[1:]))
    ended = {v: _head(v) for v in graph.outputs}
    heads = {v: width for v, width in ended.items() if not isinstance(width, Mismatch)}
    found = _pairs(tables, heads, 1) or _pairs(tables, heads, _NEAR)
    if not found and stated:
        found = [(t, v) for t in tables for v, width in heads.items() if width == stated]
    if not found:
        near = [m.text for m in ended.values() if isinstance(m, Mismatch)]
        why = _without_logits(graph, tables, heads)
        told = f" ({'; '.join(near[:_REASONS])})" if near and not heads else ""
        return Mismatch.over(list(graph.outputs), why + told)
    for what, at in (("inputs", 0), ("outputs", 1)):
        several = list(dict.fromkeys(pair[at] for pair in found))
        if len(several) > 1:
            role = ("token ids", "logits")[at]
            told = ", ".join(map(_told, several))
            why = f"several {what} could be the {role}: {told}; export the decoder with one of them"
            return Mismatch.over(several, why)
    tokens, logits = found[0]
    return Ends(tokens, logits, heads[logits])


def _pairs(
    tables: Mapping[ir.Value, Sequence[tuple[int, int]]], heads: Mapping[ir.Value, int], near: float
) -> list[tuple[ir.Value, ir.Value]]:
    """Inputs and outputs whose table has as many rows as the head has columns, within a factor."""
    return [
        (tokens, logits)
        for tokens, shapes in tables.items() for logits, width in heads.items()
        if any(max(rows, width) <= near * min(rows, width) for rows, _ in shapes)
    ]  # fmt: skip


def _told(value: ir.Value) -> str:
    shape = "" if value.shape is None else f" [{', '.join(str(d) for d in value.shape)}]"
    return f"{value.name}{shape}"


def index_readers(value: ir.Value) -> list[ir.Node]:
    """The Gather nodes that take an input as indices."""
    found, todo = list[ir.Node](), [value]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type.startswith("Gather") and index == 1:
                found.append(node)
            elif index == 0 and node.op_type in KEEPS_IDS:
                todo.extend(node.outputs)
    return found


def _tables(value: ir.Value) -> list[tuple[int, int]] | Mismatch:
    """[rows, width] of the matrices that an input indexes."""
    name = f"input {value.name}"
    if value.dtype is not None and value.dtype.is_floating_point():
        return Mismatch(name, "holds floats, not ids")
    readers = index_readers(value)
    shapes = [shape for n in readers if (shape := _matrix(n)) is not None]
    if shapes:
        return shapes
    where = f"at {label(readers[0])} it indexes no weight [tokens, width]" if readers else ""
    return Mismatch(name, where or "no Gather reads it as indices")


def _matrix(node: ir.Node) -> tuple[int, int] | None:
    if node.op_type == "GatherBlockQuantized":
        packed = node.inputs[0]
        shape = sizes_of(packed.const_value) if packed and packed.const_value is not None else ()
        return (shape[0], 0) if len(shape) == 2 else None
    shape = table_shape(node.inputs[0])
    return (shape[0], shape[1]) if shape is not None and len(shape) == 2 else None


def table_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of the weight that a value is, seen through what keeps it a weight."""
    turned = False
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _TABLE_OPS:
            return None
        turned ^= node.op_type == "Transpose"
        value = node.inputs[0]
    if value is None or value.const_value is None:
        return None
    shape = sizes_of(value.const_value)
    return tuple(reversed(shape)) if turned else shape


def _head(output: ir.Value) -> int | Mismatch:
    """The columns of the matrix that makes an output."""
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        width = _columns(node)
        if width:
            return width
        if node.op_type not in _AFTER_HEAD:
            why = f"made by {label(node)}, not by a head's matrix"
            return Mismatch(f"output {output.name}", why)
        rest = [v for v in node.inputs if v is not None and not _fixed(v)]
        value = next(iter(rest[1:] if node.op_type == "Where" and rest[1:] else rest), None)
    return Mismatch(f"output {output.name}", "no matrix makes it")


def _fixed(value: ir.Value) -> bool:
    """Whether a value is a weight, or one that is stored in another type or turned."""
    return table_shape(value) is not None


def _columns(node: ir.Node) -> int:
    if node.op_type == "MatMulNBits":
        return int(node.attributes.get_int("N", 0) or 0)
    if node.op_type not in ("MatMul", "Gemm", "FusedMatMul"):
        return 0
    shape = table_shape(node.inputs[1])
    if shape is None or len(shape) != 2:
        return 0
    return shape[0] if node.attributes.get_int("transB", 0) else shape[1]


def _without_ids(graph: ir.Graph) -> str:
    states = [v for v in graph.inputs if v.shape is not None and len(v.shape) == 3 and _float(v)]
    if states:
        return (
            f"no input of token ids: input {_told(states[0])} takes embeddings; export with the "
            "embedding table inside, so that the graph reads token ids"
        )
    return "no input of token ids: no integer input reads an embedding table"


def _without_logits(
    graph: ir.Graph, tables: dict[ir.Value, list[tuple[int, int]]], heads: dict[ir.Value, int]
) -> str:
    """What a graph is whose outputs are no logits over its token table."""
    rows = max(r for shapes in tables.values() for r, _ in shapes)
    widths = {w for shapes in tables.values() for _, w in shapes}
    for output, width in heads.items():
        ranks = len(output.shape) if output.shape is not None else 0
        if ranks == 2 or (output.shape is None and _picks(output)):
            kind = "a classifier of texts"
        else:
            kind = "a token classifier"
        if width * _NEAR < rows:
            return (
                f"this is {kind} with {width} labels, not a decoder: its output {output.name} has "
                f"no logits over the {rows} tokens of its table"
            )
    states = [v for v in _floats(graph.outputs) if _width(v) in widths or _ends_in_norm(v)]
    if states:
        return (
            f"this graph has no head: its output {_told(states[0])} is hidden states, not logits "
            f"over the {rows} tokens of its table; export the model with its language-model head"
        )
    outputs = ", ".join(_told(v) for v in graph.outputs)
    return (
        f"no output looks like logits over the {rows} tokens of the table (outputs: {outputs}): "
        "not a decoder that graftline knows"
    )


def _floats(values: Iterable[ir.Value]) -> list[ir.Value]:
    return [v for v in values if v.dtype is None or _float(v)]


def _float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _width(value: ir.Value) -> int:
    last = value.shape[-1] if value.shape is not None and len(value.shape) > 2 else None
    return last if isinstance(last, int) else 0


def _ends_in_norm(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type.endswith("Normalization")


def _picks(value: ir.Value) -> bool:
    """Whether one row is chosen above a head, as for a whole text."""
    at: ir.Value | None = value
    while at is not None and (node := at.producer()) is not None:
        if node.op_type.startswith("Gather") or node.op_type in ("ReduceMean", "ArgMax"):
            return True
        at = node.inputs[0] if node.inputs else None
    return False

