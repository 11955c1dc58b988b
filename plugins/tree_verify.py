"""TreeVerify: from the token chosen at every node to the accepted path.

With the target's argmax as the choice this is greedy verification; with one draw per node it is the
exact rule for point masses, and with `TreeSample`'s choice it is rejection sampling.
"""

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

# A node stands when it carries the choice of its parent, is the first of its siblings that does,
# and its parent stands. Standing is handed down by doubling: after r rounds kept{r} knows of the
# 2^r nearest ancestors, and up{r} points at the next. The standing nodes then form one path, and
# the token that a step adds after each of them is that node's choice.
_ROUNDS = "".join(
    f"""
    above{r} = GatherND <batch_dims = 1> (kept{r}, up{r})
    kept{r + 1} = Mul (kept{r}, above{r})
    up{r + 1} = GatherND <batch_dims = 1> (up{r}, up{r})"""
    for r in range(doublings(TREE_LIMIT))
)
KEPT = f"kept{doublings(TREE_LIMIT)}"
BODY = f"""
    zero = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64 {{1}}> ()
    none = Constant <value = int64 {{-1}}> ()
    first_axis = Constant <value_ints = [1]> ()
    second_axis = Constant <value_ints = [2]> ()
    extent = Shape <start = 1, end = 2> (tokens)
    rows = Squeeze (extent)
    index = Range (zero, rows, one)
    column = Unsqueeze (index, first_axis)
    parent = Max (parents, zero)
    up0 = Unsqueeze (parent, second_axis)
    wanted = GatherND <batch_dims = 1> (choice, up0)
    agrees = Equal (tokens, wanted)
    placed = GreaterOrEqual (parents, zero)
    parents_i = Unsqueeze (parents, second_axis)
    parents_j = Unsqueeze (parents, first_axis)
    tokens_i = Unsqueeze (tokens, second_axis)
    tokens_j = Unsqueeze (tokens, first_axis)
    siblings = Equal (parents_i, parents_j)
    twins = Equal (tokens_i, tokens_j)
    earlier = Less (index, column)
    twin_siblings = And (siblings, twins)
    earlier_twins = And (twin_siblings, earlier)
    earlier_numbers = Cast <to = 7> (earlier_twins)
    twin_count = ReduceSum <keepdims = 0> (earlier_numbers, second_axis)
    alone = Equal (twin_count, zero)
    stands = And (agrees, placed)
    follows = And (stands, alone)
    root = Equal (index, zero)
    held = Or (follows, root)
    kept0 = Cast <to = 7> (held)
    {_ROUNDS}
    count = ReduceSum <keepdims = 0> ({KEPT}, first_axis)
    order = CumSum ({KEPT}, one)
    rank = Sub (order, one)
    ranks = Unsqueeze (rank, first_axis)
    at_place = Equal (ranks, column)
    chosen = Unsqueeze ({KEPT}, first_axis)
    chosen_bool = Cast <to = 9> (chosen)
    here = And (at_place, chosen_bool)
    here_number = Cast <to = 7> (here)
    weighted = Mul (here_number, index)
    nodes = ReduceSum <keepdims = 0> (weighted, second_axis)
    count_column = Unsqueeze (count, first_axis)
    valid = Less (index, count_column)
    path = Where (valid, nodes, none)
    node_pointers = Unsqueeze (nodes, second_axis)
    added = GatherND <batch_dims = 1> (choice, node_pointers)
    accepted = Where (valid, added, none)
    last = ReduceMax (nodes, first_axis)
    next = GatherND <batch_dims = 1> (choice, last)
"""


def reference(choice: Array, tokens: Array, parents: Array) -> tuple[Array, ...]:
    """The walk of runtimes/verdict.py, row by row."""
    batch, rows = tokens.shape
    path, accepted = np.full((2, batch, rows), -1, np.int64)
    count, following = np.zeros((2, batch), np.int64)
    for b in range(batch):
        node, steps = 0, 0
        while node >= 0:
            path[b, steps], accepted[b, steps] = node, choice[b, node]
            steps += 1
            standing = (parents[b] == node) & (tokens[b] == choice[b, node])
            following[b] = choice[b, node]
            node = int(np.argmax(standing)) if standing.any() else -1
        count[b] = steps
    return path, accepted, count, following


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {"N": dims["N"], "NP": power_of_two(dims["N"])}
    return Plan(constants, (dims["B"], 1), warps=1 if dims["N"] <= 64 else 4)


TREE_VERIFY = Plugin(
    name="TreeVerify",
    module="tree_verify",
    inputs=(
        Tensor("choice", "int64", ("B", "N")),
        Tensor("tokens", "int64", ("B", "N")),
        Tensor("parents", "int64", ("B", "N")),
    ),
    outputs=(
        Tensor("path", "int64", ("B", "N")),
        Tensor("accepted", "int64", ("B", "N")),
        Tensor("count", "int64", ("B",)),
        Tensor("next", "int64", ("B",)),
    ),
    body=BODY,
    reference=reference,
    plan=plan,
    static=("N",),
)
"""`choice` [B, N]: the token the target chooses after each node. `parents` -1 but at node 0 marks
padding. `path`: accepted nodes, root first; `accepted`: the tokens the step adds, the last of
which is `next`; both hold `count` entries, then -1."""
