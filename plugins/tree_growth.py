"""TreeGrow and TreePrune: a tree expanded and cut by joint probability (EAGLE-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

GROW_BODY = """
    beam = Constant <value_int: int = @beam> ()
    spread = Constant <value_ints = [0, -1]> ()
    sums = Reshape (Add (Unsqueeze (joint, axis_2), logprobs), spread)
    scores, places = TopK <axis = 1> (sums, Unsqueeze (beam, zero))
    origin = Div (places, Shape <start = 2, end = 3> (logprobs))
    tokens = GatherND <batch_dims = 1> (Reshape (ids, spread), Unsqueeze (places, axis_2))
"""
PRUNE_BODY = """
    rows = Constant <value_int: int = @rows> ()
    node = Range (zero, Squeeze (Shape <start = 1, end = 2> (scores)), one)
    scores_i = Unsqueeze (scores, axis_2)
    scores_j = Unsqueeze (scores, axis_1)
    earlier = Less (node, Unsqueeze (node, axis_1))
    equal_earlier = And (Equal (scores_j, scores_i), earlier)
    beats = Or (Greater (scores_j, scores_i), equal_earlier)
    stays = Less (ReduceSum <keepdims = 0> (Cast <to = 7> (beats), axis_2), rows)
    place = Sub (CumSum (Cast <to = 7> (stays), one), one)
    places = Unsqueeze (place, axis_1)
    at_place = Equal (places, Unsqueeze (Range (zero, rows, one), axis_1))
    weighted = Mul (Cast <to = 7> (And (at_place, Unsqueeze (stays, axis_1))), node)
    kept = ReduceSum <keepdims = 0> (weighted, axis_2)
    kept_pointers = Unsqueeze (kept, axis_2)
    kept_tokens = GatherND <batch_dims = 1> (tokens, kept_pointers)
    above = GatherND <batch_dims = 1> (parents, kept_pointers)
    above_place = GatherND <batch_dims = 1> (place, Unsqueeze (Max (above, zero), axis_2))
    kept_parents = Where (Less (above, zero), none, above_place)
"""


def grow(joint: Array, logprobs: Array, ids: Array, *, beam: int) -> tuple[Array, ...]:
    batch, _, width = ids.shape
    sums = (joint[..., None] + logprobs).reshape(batch, -1)
    places = np.argsort(-sums, axis=1, kind="stable")[:, :beam]
    tokens = np.take_along_axis(ids.reshape(batch, -1), places, axis=1)
    return np.take_along_axis(sums, places, axis=1), places // width, tokens


def prune(scores: Array, tokens: Array, parents: Array, *, rows: int) -> tuple[Array, ...]:
    kept = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :rows], axis=1)
    above = np.full(kept.shape, -1, np.int64)
    for b, nodes in enumerate(kept.tolist()):
        for place, node in enumerate(nodes[1:], 1):
            above[b, place] = nodes.index(parents[b, node])
    return np.take_along_axis(tokens, kept, axis=1), above, kept


def grow_plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    count = dims["F"] * dims["W"]
    constants = {
        "W": dims["W"], "COUNT": count, "PADDED": power_of_two(count), "BEAM": values["beam"]
    }  # fmt: skip
    return Plan(constants, (dims["B"], 1))


def prune_plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {"M": dims["M"], "MP": power_of_two(dims["M"]), "ROWS": values["rows"]}
    return Plan(constants, (dims["B"], 1))


TREE_GROW = Plugin(
    name="TreeGrow",
    module="tree_grow",
    inputs=(
        Tensor("joint", "float32", ("B", "F")),
        Tensor("logprobs", "float32", ("B", "F", "W")),
        Tensor("ids", "int64", ("B", "F", "W")),
    ),
    outputs=(
        Tensor("scores", "float32", ("B", "beam")),
        Tensor("origin", "int64", ("B", "beam")),
        Tensor("tokens", "int64", ("B", "beam")),
    ),
    body=GROW_BODY,
    reference=grow,
    plan=grow_plan,
    attributes={"beam": 8},
    static=("F", "W"),
)
"""EAGLE-2's expansion (arXiv 2406.16858): of the W candidates of each of F frontier nodes, the
`beam` with the largest log-probability of their whole path (`joint` + `logprobs`), best first.
`origin` is the frontier node a candidate hangs from."""

TREE_PRUNE = Plugin(
    name="TreePrune",
    module="tree_prune",
    inputs=(
        Tensor("scores", "float32", ("B", "M")),
        Tensor("tokens", "int64", ("B", "M")),
        Tensor("parents", "int64", ("B", "M")),
    ),
    outputs=(
        Tensor("kept_tokens", "int64", ("B", "rows")),
        Tensor("kept_parents", "int64", ("B", "rows")),
        Tensor("kept", "int64", ("B", "rows")),
    ),
    body=PRUNE_BODY,
    reference=prune,
    plan=prune_plan,
    attributes={"rows": 16},
    static=("M",),
)
"""EAGLE-2's reranking: of all nodes drafted, the `rows` <= M with the best joint scores, renumbered
in their order; `kept` are their old numbers. A child's score is at most its parent's, as joint
log-probabilities are, and equal scores go by number, so what is kept is a tree."""
