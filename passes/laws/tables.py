"""The law `tables`: a lowered graph turns its heads by the host's cosines and sines, every row.

A feed passes a few positions only; a table has thousands.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Array
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_of
from graftline.passes.graph.weights import constant, tensor_of
from graftline.passes.pipeline.graft import Graft

_PLACES = {"RotaryEmbedding": (1, 2), "GroupQueryAttention": (7, 8)}
"""Which inputs of an operator are its cosines and sines."""


def tables(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """The rotary tables [P, R/2] that each block reads, in the precision it reads them in."""
    was, now = _by_block(before.graph), _by_block(after.graph)
    if was.keys() != now.keys():
        odd = sorted(was.keys() ^ now.keys())
        raise LawBroken(graft.name(), "tables", f"block {odd[0]}", "gains or loses its tables")
    for block, pairs in now.items():
        if len(pairs) != len(was[block]) or not all(_held(pair, was[block]) for pair in pairs):
            raise LawBroken(graft.name(), "tables", f"block {block}", "rotates by other angles")
    kinds = {id(array) for pairs in now.values() for pair in pairs for array in pair}
    return Evidence(f"{len(kinds) // 2} pairs of rotary tables in {len(now)} blocks are the host's")


Pair = tuple[Array, Array]


def _by_block(graph: ir.Graph) -> dict[int, list[Pair]]:
    found: dict[int, dict[tuple[int, int], Pair]] = {}
    arrays: dict[ir.Value, Array] = {}
    for node in graph:
        block, places = block_of(node), _PLACES.get(node.op_type)
        if block is None or places is None or len(node.inputs) <= places[-1]:
            continue
        values = [constant(node.inputs[i]) for i in places]
        held = [arrays.setdefault(v, tensor_of(v).numpy()) for v in values if v is not None]
        if len(held) == len(places):
            found.setdefault(block, {})[id(held[0]), id(held[1])] = (held[0], held[1])
    return {block: list(pairs.values()) for block, pairs in found.items()}


def _held(pair: Pair, among: list[Pair]) -> bool:
    return any(all(map(_same, pair, other)) for other in among)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.array_equal(one, other.astype(one.dtype))
