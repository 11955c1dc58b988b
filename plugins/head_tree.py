"""HeadTree: the next tree's tokens out of one logits row per depth (draft heads)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

BODY = """
    spread = Constant <value_ints = [0, -1]> ()
    width = Constant <value_int: int = @width> ()
    values, ids = TopK <axis = -1> (logits, Unsqueeze (width, zero))
    offset = Mul (Max (Sub (depths, one), zero), width)
    drafted = Gather <axis = 1> (Reshape (ids, spread), Add (offset, ranks))
    tokens = Where (Equal (depths, zero), Unsqueeze (root, axis_1), drafted)
"""


def reference(
    logits: Array, root: Array, depths: Array, ranks: Array, *, width: int
) -> tuple[Array, ...]:
    """Equal logits rank by token id, the lower first."""
    best = np.argsort(-logits.astype(np.float64), axis=-1, kind="stable")[..., :width]
    tokens = np.empty((len(root), len(depths)), np.int64)
    for node, (depth, rank) in enumerate(zip(depths, ranks, strict=True)):
        tokens[:, node] = best[:, depth - 1, rank] if depth else root
    return (tokens,)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {
        "N": dims["N"], "NP": power_of_two(dims["N"]), "LEVELS": dims["L"],
        "WIDTH": values["width"], "BLOCK": 2048,
    } # fmt: skip
    return Plan(constants, (dims["B"] * dims["L"], 1), warps=8)


HEAD_TREE = Plugin(
    name="HeadTree",
    module="head_tree",
    inputs=(
        Tensor("logits", "T", ("B", "L", "V")),
        Tensor("root", "int64", ("B",)),
        Tensor("depths", "int64", ("N",)),
        Tensor("ranks", "int64", ("N",)),
    ),
    outputs=(Tensor("tokens", "int64", ("B", "N")),),
    body=BODY,
    reference=reference,
    plan=plan,
    attributes={"width": 8},
    static=("N", "L"),
    scalars=("V",),
)
"""Medusa's tree (arXiv 2401.10774): node i is the candidate of rank ranks[i] < `width` in the
logits of level depths[i] - 1; node 0 (depth 0) is `root`. Equal logits rank by token id."""
