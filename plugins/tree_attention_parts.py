"""TreeAttentionParts and TreeAttentionMerge: TreeAttention for few sequences and long caches.

A sequence's slots are shared out among programs (flash decoding), which `TreeAttention` leaves to
one: at batch 1 that is a handful of a GPU's processors. The merge equals `TreeAttention`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins import tree_attention
from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two
from graftline.plugins.tree_attention import TREE_ATTENTION, VISIBLE

NOTHING = -1e30
"""The top score of a row that sees nothing in a part."""

PARTS_BODY = f"""{VISIBLE}
    parts = Constant <value_int: int = @parts> ()
    sixty_four = Constant <value = int64 {{64}}> ()
    nothing = Constant <value = float {{{NOTHING}}}> ()
    scale = Constant <value_float: float = @scale> ()
    cap = Constant <value_float: float = @softcap> ()
    unit = Mul (parts, sixty_four)
    units = Div (Add (length_column, Sub (unit, one)), unit)
    part_committed = Div (slot, Max (Mul (units, sixty_four), one))
    part_of_slot = Where (committed_flat, part_committed, Sub (parts, one))
    part_rows = Unsqueeze (part_of_slot, axis_1)
    in_part_3 = Equal (part_rows, Unsqueeze (Range (zero, parts, one), axis_1))
    seen_in_part = And (Unsqueeze (seen, axis_1), Unsqueeze (in_part_3, axis_2))
    counted = Unsqueeze (seen_in_part, axis_1)
    batch_1 = Shape <start = 0, end = 1> (query)
    heads_1 = Shape <start = 1, end = 2> (query)
    size_1 = Shape <start = 3, end = 4> (query)
    kv_heads_1 = Shape <start = 1, end = 2> (key)
    query_f = Cast <to = 1> (query)
    grouped = Reshape (query_f, Concat <axis = 0> (batch_1, kv_heads_1, flat, size_1))
    products = MatMul (grouped, Transpose <perm = [0, 1, 3, 2]> (Cast <to = 1> (key)))
    scaled = Mul (products, scale)
    bent = Tanh (Div (scaled, Max (cap, tiny)))
    score = Where (Greater (cap, zero_f), Mul (bent, cap), scaled)
    scores = Reshape (score, Concat <axis = 0> (batch_1, heads_1, one_1, rows_1, slots_1))
    masked = Where (counted, scores, nothing)
    tops = ReduceMax <keepdims = 0> (masked, last_axis)
    powers = Exp (Sub (masked, Unsqueeze (tops, last_axis)))
    weights = Where (counted, powers, zero_f)
    totals = ReduceSum <keepdims = 0> (weights, last_axis)
    weights_4 = Reshape (weights, Concat <axis = 0> (batch_1, kv_heads_1, flat, slots_1))
    by_part = Concat <axis = 0> (batch_1, heads_1, Unsqueeze (parts, zero), rows_1, size_1)
    sums = Reshape (MatMul (weights_4, Cast <to = 1> (value)), by_part)
"""
MERGE_BODY = """
    weights = Exp (Sub (tops, ReduceMax <keepdims = 1> (tops, axis_2)))
    total = ReduceSum <keepdims = 0> (Mul (totals, weights), axis_2)
    weighted_sums = Mul (sums, Unsqueeze (weights, last_axis))
    sum = ReduceSum <keepdims = 0> (weighted_sums, axis_2)
    output = CastLike (Div (sum, Unsqueeze (total, last_axis)), like)
"""


def parts_for(programs: int, slots: int, processors: int) -> int:
    """How many parts fill `processors` twice, of at least 256 slots each; `programs` per part."""
    return max(1, min(2 * processors // programs, slots // 256))


def divide(
    query: Array, key: Array, value: Array, parents: Array, lengths: Array, *,
    scale: float, softcap: float, window: int, parts: int,
) -> tuple[Array, ...]:  # fmt: skip
    """Row by row, in float64, with the mask of a tree walked by hand."""
    batch, heads, rows, size = query.shape
    group = heads // key.shape[1]
    sums = np.zeros((batch, heads, parts, rows, size), np.float32)
    tops = np.full((batch, heads, parts, rows), NOTHING, np.float32)
    totals = np.zeros_like(tops)
    for b in range(batch):
        length = int(lengths[b])
        share = -(-length // (64 * parts)) * 64
        depth = np.zeros(rows, np.int64)
        for i in range(rows):
            path = [i]
            while parents[b, path[0]] >= 0:
                path.insert(0, int(parents[b, path[0]]))
            depth[i] = len(path) - 1
            slots = np.array([*range(length), *(length + n for n in path)])
            distance = length + depth[i] - np.array([*range(length), *(length + depth[path])])
            part = np.where(slots < length, slots // max(share, 1), parts - 1)
            for h, p in np.ndindex(heads, parts):
                seen = slots[(part == p) & ((distance < window) | (window <= 0))]
                if len(seen) == 0:
                    continue
                keys, values = (x[b, h // group, seen].astype(np.float64) for x in (key, value))
                scores = keys @ query[b, h, i].astype(np.float64) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                tops[b, h, p, i], totals[b, h, p, i] = scores.max(), weights.sum()
                sums[b, h, p, i] = weights @ values
    return sums, tops, totals


def merge(sums: Array, tops: Array, totals: Array, like: Array) -> tuple[Array, ...]:
    weights = np.exp(tops - tops.max(axis=2, keepdims=True))
    total = (totals * weights).sum(axis=2)
    return (((sums * weights[..., None]).sum(axis=2) / total[..., None]).astype(like.dtype),)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    parts = int(values["parts"])
    whole = tree_attention.plan(dims, values, cdiv, parts)
    return Plan({**whole.constants, "PARTS": parts}, whole.grid, whole.warps)


def merge_plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {
        "N": dims["N"], "D": dims["D"], "DP": power_of_two(dims["D"], 16),
        "PARTS": dims["parts"], "PP": power_of_two(dims["parts"]),
    } # fmt: skip
    return Plan(constants, (dims["B"] * dims["Hq"], dims["N"]))


_PARTIAL = (
    Tensor("sums", "float32", ("B", "Hq", "parts", "N", "D")),
    Tensor("tops", "float32", ("B", "Hq", "parts", "N")),
    Tensor("totals", "float32", ("B", "Hq", "parts", "N")),
)
TREE_ATTENTION_PARTS = Plugin(
    name="TreeAttentionParts",
    module="tree_attention_parts",
    inputs=TREE_ATTENTION.inputs,
    outputs=_PARTIAL,
    body=PARTS_BODY,
    reference=divide,
    plan=plan,
    attributes={**TREE_ATTENTION.attributes, "parts": 4},
    static=TREE_ATTENTION.static,
    scalars=TREE_ATTENTION.scalars,
)
"""Of each row and part: the greatest score, the sum of exp(score - greatest), and the values summed
with these weights. A part is lengths[b] / parts committed slots, rounded up to 64; the tree's own
rows belong to the last part. A part in which a row sees nothing has sums 0 and top -1e30."""

TREE_ATTENTION_MERGE = Plugin(
    name="TreeAttentionMerge",
    module="tree_attention_merge",
    inputs=(*_PARTIAL, Tensor("like", "T", ("B", "Hq", "N", "D"))),
    outputs=(Tensor("output", "T", ("B", "Hq", "N", "D")),),
    body=MERGE_BODY,
    reference=merge,
    plan=merge_plan,
    static=("parts", "Hq", "N", "D"),
)
"""`TreeAttention`'s output from `TreeAttentionParts`, in the type of `like` (the query)."""
