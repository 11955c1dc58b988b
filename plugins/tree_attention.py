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
    paths{r} = MatMul (reach{r}, reach{r})
    reach{r + 1} = Min (paths{r}, one_f)"""
    for r in range(doublings(TREE_LIMIT))
)
LAST = doublings(TREE_LIMIT)
VISIBLE = f"""
    zero = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64 {{1}}> ()
    one_f = Constant <value = float {{1.0}}> ()
    first_axis = Constant <value_ints = [1]> ()
    second_axis = Constant <value_ints = [2]> ()
    window = Constant <value_int: int = @window> ()
    rows_1 = Shape <start = 2, end = 3> (query)
    slots_1 = Shape <start = 2, end = 3> (key)
    rows = Squeeze (rows_1)
    slots = Squeeze (slots_1)
    node = Range (zero, rows, one)
    slot = Range (zero, slots, one)
    node_column = Unsqueeze (node, first_axis)
    parent_column = Unsqueeze (parents, second_axis)
    is_parent = Equal (parent_column, node)
    is_self = Equal (node_column, node)
    near0 = Or (is_parent, is_self)
    reach0 = Cast <to = 1> (near0)
    {_ROUNDS}
    generations = ReduceSum <keepdims = 1> (reach{LAST}, second_axis)
    depth_f = Sub (generations, one_f)
    depth_column = Cast <to = 7> (depth_f)
    length_column = Unsqueeze (lengths, first_axis)
    place = Sub (slot, length_column)
    committed_flat = Less (place, zero)
    committed = Unsqueeze (committed_flat, first_axis)
    within = Less (place, rows_1)
    last_row = Sub (rows_1, one)
    above_zero = Max (place, zero)
    node_of_slot = Min (above_zero, last_row)
    pointers = Unsqueeze (node_of_slot, second_axis)
    descendants = Transpose <perm = [0, 2, 1]> (reach{LAST})
    by_slot = GatherND <batch_dims = 1> (descendants, pointers)
    by_row = Transpose <perm = [0, 2, 1]> (by_slot)
    ancestor = Cast <to = 9> (by_row)
    within_row = Unsqueeze (within, first_axis)
    own = And (ancestor, within_row)
    visible = Or (committed, own)
    depth_flat = Squeeze (depth_column, second_axis)
    slot_depth = GatherND <batch_dims = 1> (depth_flat, pointers)
    relative = Where (committed_flat, place, slot_depth)
    relative_row = Unsqueeze (relative, first_axis)
    distance = Sub (depth_column, relative_row)
    in_window = Less (distance, window)
    no_window = LessOrEqual (window, zero)
    near = Or (in_window, no_window)
    seen = And (visible, near)
"""
"""`seen` [B, N, S]: which slots a node sees."""
BODY = f"""{VISIBLE}
    mask = Unsqueeze (seen, first_axis)
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
    }  # fmt: skip
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
