"""TreeGrow and TreePrune: a tree expanded and cut by joint probability (EAGLE-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

GROW_BODY = """
    beam = Constant <value_int: int = @beam> ()
    zero = Constant <value = int64 {0}> ()
    second_axis = Constant <value_ints = [2]> ()
    spread = Constant <value_ints = [0, -1]> ()
    width_1 = Shape <start = 2, end = 3> (logprobs)
    beam_1 = Unsqueeze (beam, zero)
    joint_column = Unsqueeze (joint, second_axis)
    sums = Add (joint_column, logprobs)
    flat = Reshape (sums, spread)
    flat_ids = Reshape (ids, spread)
    scores, places = TopK <axis = 1> (flat, beam_1)
    origin = Div (places, width_1)
    place_pointers = Unsqueeze (places, second_axis)
    tokens = GatherND <batch_dims = 1> (flat_ids, place_pointers)
"""
PRUNE_BODY = """
    rows = Constant <value_int: int = @rows> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    none = Constant <value = int64 {-1}> ()
    first_axis = Constant <value_ints = [1]> ()
    second_axis = Constant <value_ints = [2]> ()
    nodes_1 = Shape <start = 1, end = 2> (scores)
    nodes = Squeeze (nodes_1)
    node = Range (zero, nodes, one)
    node_column = Unsqueeze (node, first_axis)
    scores_i = Unsqueeze (scores, second_axis)
    scores_j = Unsqueeze (scores, first_axis)
    higher = Greater (scores_j, scores_i)
    equal = Equal (scores_j, scores_i)
    earlier = Less (node, node_column)
    equal_earlier = And (equal, earlier)
    beats = Or (higher, equal_earlier)
    beat_numbers = Cast <to = 7> (beats)
    rank = ReduceSum <keepdims = 0> (beat_numbers, second_axis)
    stays = Less (rank, rows)
    stay_numbers = Cast <to = 7> (stays)
    order = CumSum (stay_numbers, one)
    place = Sub (order, one)
    new = Range (zero, rows, one)
    new_column = Unsqueeze (new, first_axis)
    places = Unsqueeze (place, first_axis)
    at_place = Equal (places, new_column)
    stays_row = Unsqueeze (stays, first_axis)
    chosen = And (at_place, stays_row)
    chosen_numbers = Cast <to = 7> (chosen)
    weighted = Mul (chosen_numbers, node)
    kept = ReduceSum <keepdims = 0> (weighted, second_axis)
    kept_pointers = Unsqueeze (kept, second_axis)
    kept_tokens = GatherND <batch_dims = 1> (tokens, kept_pointers)
    above = GatherND <batch_dims = 1> (parents, kept_pointers)
    above_0 = Max (above, zero)
    above_pointers = Unsqueeze (above_0, second_axis)
    above_place = GatherND <batch_dims = 1> (place, above_pointers)
    is_root = Less (above, zero)
    kept_parents = Where (is_root, none, above_place)
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
