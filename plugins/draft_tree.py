"""DraftTree: the next tree's tokens out of a table of candidates per token (token recycling)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

# Every level is one round: after r rounds the nodes of depth <= r hold their token, -1 for none.
BODY = """
    levels = Constant <value_int: int = @levels> ()
    whole = Concat <axis = 0> (Shape (root), Shape (parents))
    root_column = Unsqueeze (root, axis_1)
    start = Expand (root_column, whole)
    is_root = Less (parents, zero)
    up = Max (parents, zero)
    rank = Expand (Unsqueeze (ranks, axis_0), whole)
    filled = Loop (levels, true, start) <body = level
        (int64 round, bool go_on, int64[B, N] held) => (bool goes_on, int64[B, N] now)
    {
        goes_on = Identity (go_on)
        above = Gather <axis = 1> (held, up)
        pair_rank = Unsqueeze (rank, last_axis)
        pair = Concat <axis = -1> (Unsqueeze (Max (above, zero), last_axis), pair_rank)
        gap = Less (above, zero)
        drawn = Where (gap, none, Cast <to = 7> (GatherND (table, pair)))
        now = Where (is_root, root_column, drawn)
    }>
    tokens = Max (filled, zero)
    kept_parents = Where (Less (filled, zero), none, parents)
"""


def reference(
    table: Array, root: Array, parents: Array, ranks: Array, *, levels: int
) -> tuple[Array, ...]:
    """Node by node; `levels` is at least the deepest node's depth."""
    shape = len(root), len(parents)
    tokens, kept = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    for b in range(shape[0]):
        found = [int(root[b])]
        for node in range(1, shape[1]):
            above = found[parents[node]]
            found.append(int(table[above, ranks[node]]) if above >= 0 else -1)
            if found[node] >= 0:
                tokens[b, node], kept[b, node] = found[node], parents[node]
        tokens[b, 0] = found[0]
    return tokens, kept


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {
        "N": dims["N"], "NP": power_of_two(dims["N"]), "W": dims["W"], "LEVELS": values["levels"]
    } # fmt: skip
    return Plan(constants, (dims["B"], 1), warps=1 if dims["N"] <= 64 else 4)


DRAFT_TREE = Plugin(
    name="DraftTree",
    module="draft_tree",
    inputs=(
        Tensor("table", "int32", ("V", "W")),
        Tensor("root", "int64", ("B",)),
        Tensor("parents", "int64", ("N",)),
        Tensor("ranks", "int64", ("N",)),
    ),
    outputs=(Tensor("tokens", "int64", ("B", "N")), Tensor("kept_parents", "int64", ("B", "N"))),
    body=BODY,
    reference=reference,
    plan=plan,
    attributes={"levels": 8},
    static=("N", "W"),
)
"""Token Recycling (arXiv 2408.08696). `table` [V, W]: a token's latest candidates, best first, -1
where there is none. Node i of the static tree `parents`, `ranks` is candidate ranks[i] of its
parent's token; `levels` is the tree's depth. A node without a candidate, and all below it, get
token 0 and parent -1: padding, which no path enters."""
