"""TreeAttention: the new rows of a tree attend to the cache and to their ancestors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import (
    TREE_LIMIT,
    Array,
    Dims,
    Plan,
    Plugin,
    Tensor,
    Values,
    doublings,
    power_of_two,
)

# reach{r}[i, j] is 1 when j is i or at most 2^r - 1 steps above it. A slot's place is relative to
# the committed length: negative before it, else the number of the node written there.
_ROUNDS = "".join(
    f"""
    reach{r + 1} = Min (MatMul (reach{r}, reach{r}), one_f)"""
    for r in range(doublings(TREE_LIMIT))
)
LAST = doublings(TREE_LIMIT)
VISIBLE = f"""
    window = Constant <value_int: int = @window> ()
    rows_1 = Shape <start = 2, end = 3> (query)
    slots_1 = Shape <start = 2, end = 3> (key)
    node = Range (zero, Squeeze (rows_1), one)
    slot = Range (zero, Squeeze (slots_1), one)
    is_self = Equal (Unsqueeze (node, axis_1), node)
    near0 = Or (Equal (Unsqueeze (parents, axis_2), node), is_self)
    reach0 = Cast <to = 1> (near0)
    {_ROUNDS}
    depth_f = Sub (ReduceSum <keepdims = 1> (reach{LAST}, axis_2), one_f)
    depth_column = Cast <to = 7> (depth_f)
    length_column = Unsqueeze (lengths, axis_1)
    place = Sub (slot, length_column)
    committed_flat = Less (place, zero)
    pointers = Unsqueeze (Min (Max (place, zero), Sub (rows_1, one)), axis_2)
    by_slot = GatherND <batch_dims = 1> (Transpose <perm = [0, 2, 1]> (reach{LAST}), pointers)
    within_row = Unsqueeze (Less (place, rows_1), axis_1)
    own = And (Cast <to = 9> (Transpose <perm = [0, 2, 1]> (by_slot)), within_row)
    slot_depth = GatherND <batch_dims = 1> (Squeeze (depth_column, axis_2), pointers)
    relative_row = Unsqueeze (Where (committed_flat, place, slot_depth), axis_1)
    no_window = LessOrEqual (window, zero)
    near = Or (Less (Sub (depth_column, relative_row), window), no_window)
    seen = And (Or (Unsqueeze (committed_flat, axis_1), own), near)
"""
"""`seen` [B, N, S]: which slots a node sees."""
BODY = f"""{VISIBLE}
    mask = Unsqueeze (seen, axis_1)
    output = Attention <scale: float = @scale, softcap: float = @softcap> (query, key, value, mask)
"""


def reference(
    query: Array, key: Array, value: Array, parents: Array, lengths: Array, *,
    scale: float, softcap: float, window: int,
) -> tuple[Array, ...]:  # fmt: skip
    """Row by row, in float64, over the visible slots alone."""
    batch, heads, rows, _ = query.shape
    group = heads // key.shape[1]
    output = np.zeros(query.shape, np.float64)
    for b in range(batch):
        depth = np.zeros(rows, np.int64)
        for i in range(rows):
            path = [i]
            while parents[b, path[-1]] >= 0:
                path.append(int(parents[b, path[-1]]))
            depth[i] = len(path) - 1
            slots = np.array([*range(lengths[b]), *(lengths[b] + np.sort(path))])
            positions = np.array([*range(lengths[b]), *(lengths[b] + depth[np.sort(path)])])
            if window > 0:
                slots = slots[lengths[b] + depth[i] - positions < window]
            for h in range(heads):
                keys, values = (x[b, h // group, slots].astype(np.float64) for x in (key, value))
                scores = keys @ query[b, h, i].astype(np.float64) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                output[b, h, i] = weights @ values / weights.sum()
    return (output.astype(query.dtype),)


def plan(
    dims: Dims, values: Values, cdiv: Callable[[Any, int], Any], parts: int = 1
) -> Plan:
    """A program takes one KV head and up to 64 of the rows x query heads that share it."""
    group = dims["Hq"] // dims["Hkv"]
    rows = power_of_two(dims["N"] * group, 16)
    block, size = min(64, rows), power_of_two(dims["D"], 16)
    constants = {
        "N": dims["N"], "NP": power_of_two(dims["N"], 16), "HQ": dims["Hq"], "HKV": dims["Hkv"],
        "D": dims["D"], "DP": size, "ROUNDS": doublings(dims["N"]),
        "BLOCK_M": block, "BLOCK_S": max(16, min(64, 4096 // size)),
        "SCALE": values["scale"], "SOFTCAP": values["softcap"], "WINDOW": values["window"],
    } # fmt: skip
    grid = dims["B"] * dims["Hkv"], -(-dims["N"] * group // block) * parts
    return Plan(constants, grid, warps=8 if block * size >= 64 * 128 else 4)


TREE_ATTENTION = Plugin(
    name="TreeAttention",
    module="tree_attention",
    inputs=(
        Tensor("query", "T", ("B", "Hq", "N", "D")),
        Tensor("key", "T", ("B", "Hkv", "S", "D")),
        Tensor("value", "T", ("B", "Hkv", "S", "D")),
        Tensor("parents", "int64", ("B", "N")),
        Tensor("lengths", "int64", ("B",)),
    ),
    outputs=(Tensor("output", "T", ("B", "Hq", "N", "D")),),
    body=BODY,
    reference=reference,
    plan=plan,
    attributes={"scale": 1.0, "softcap": 0.0, "window": 0},
    static=("Hq", "Hkv", "N", "D"),
    scalars=("S",),
)
"""`key` and `value` are the cache after the tree's rows were written to slots lengths[b] + node.
Node i of sequence b sees the slots before lengths[b], its ancestors and itself; of these, with
`window` > 0, those less than `window` positions away (a node's position is lengths[b] + depth).
Slots behind the tree are never read. `softcap` 0 is none. A node whose parent is -1 sees the cache
and itself."""
