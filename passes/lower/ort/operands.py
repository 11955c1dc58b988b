"""Attention of a canonical decoder taken apart: what of it GroupQueryAttention can take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.grafts.masks import LATER


@dataclass
class Operands:
    """An attention taken apart: rows before the rotary, tables, caches."""

    node: ir.Node
    fresh: tuple[ir.Value, ir.Value, ir.Value]
    """Query, key, value as [B, heads, N, D], before any rotary."""
    caches: tuple[ir.Value, ir.Value]
    start: ir.Value
    """[B]: the slot that new rows are written from."""
    scatters: tuple[ir.Node, ir.Node]
    rotary: ir.Node | None
    heads: tuple[int, int]
    head_size: int

    @classmethod
    def of(cls, node: ir.Node, indices: Mapping[ir.Value, ir.Value]) -> Operands | None:
        """The operands when they fit GroupQueryAttention, which is causal, else None. `indices`: of
        every cache the input that says from which slot on it is written."""
        if LATER in node.metadata_props:
            return None
        query, key, value = node.inputs[:3]
        scatters = [_scatter(v, indices) for v in (key, value)]
        if query is None or scatters[0] is None or scatters[1] is None:
            return None
        (keys, fresh_key), (values, fresh_value) = (_two(s) for s in scatters if s is not None)
        if (start := indices[keys]) is not indices[values]:
            return None
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
        return cls(node, fresh, (keys, values), start, both, rotary, (heads, kv_heads), size)


def _fits_kernel(rotary: ir.Node) -> bool:
    """GroupQueryAttention turns a multiple of 16 of a head's numbers (8 columns of the table)."""
    table = rotary.inputs[1]
    columns = table.shape[-1] if table is not None and table.shape is not None else None
    return isinstance(columns, int) and columns % 8 == 0


def _scatter(value: ir.Value | None, indices: Mapping[ir.Value, ir.Value]) -> ir.Node | None:
    """The TensorScatter that writes new rows of a cache from the slot of its index on, which is
    where GroupQueryAttention writes them; None for another node, index, axis or mode."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "TensorScatter" or len(maker.inputs) != 3:
        return None
    cache, index = maker.inputs[0], maker.inputs[2]
    if cache is None or index is None or indices.get(cache) is not index:
        return None
    fits = maker.attributes.get_int("axis", -2) in (2, -2)
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


def rows_of(value: ir.Value) -> ir.Value | None:
    """[B, N, heads * D] from which Reshape and Transpose make `value`, or None."""
    turn = value.producer()
    if turn is None or turn.op_type != "Transpose" or permutation(turn) != [0, 2, 1, 3]:
        return None
    shape = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if shape is None or shape.op_type != "Reshape":
        return None
    rows = shape.inputs[0]
    return rows if rows is not None and rows.shape is not None and len(rows.shape) == 3 else None


def permutation(node: ir.Node) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(attribute.as_ints()) if attribute is not None else []
