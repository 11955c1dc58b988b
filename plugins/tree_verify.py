"""TreeVerify: from the token chosen at every node to the accepted path.

With the target's argmax as the choice this is greedy verification; with one draw per node it is the
exact rule for point masses, and with `TreeSample`'s choice it is rejection sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graftline.plugins.spec import (
    Array,
    Dims,
    Plan,
    Plugin,
    Tensor,
    Values,
    over_ancestors,
    power_of_two,
)

# A node stands when it carries the choice of its parent, is the first of its siblings that does,
# and its parent stands. The standing nodes form one path, and the token that a step adds after each
# of them is that node's choice.
_ROUNDS, KEPT = over_ancestors("kept", "Mul")
BODY = f"""
    index = Range (zero, Squeeze (Shape <start = 1, end = 2> (tokens)), one)
    column = Unsqueeze (index, axis_1)
    up0 = Unsqueeze (Max (parents, zero), axis_2)
    wanted = GatherND <batch_dims = 1> (choice, up0)
    siblings = Equal (Unsqueeze (parents, axis_2), Unsqueeze (parents, axis_1))
    twins = Equal (Unsqueeze (tokens, axis_2), Unsqueeze (tokens, axis_1))
    earlier_twins = And (And (siblings, twins), Less (index, column))
    twin_count = ReduceSum <keepdims = 0> (Cast <to = 7> (earlier_twins), axis_2)
    stands = And (Equal (tokens, wanted), GreaterOrEqual (parents, zero))
    held = Or (And (stands, Equal (twin_count, zero)), Equal (index, zero))
    kept0 = Cast <to = 7> (held)
    {_ROUNDS}
    count = ReduceSum <keepdims = 0> ({KEPT}, axis_1)
    at_place = Equal (Unsqueeze (Sub (CumSum ({KEPT}, one), one), axis_1), column)
    here = And (at_place, Cast <to = 9> (Unsqueeze ({KEPT}, axis_1)))
    nodes = ReduceSum <keepdims = 0> (Mul (Cast <to = 7> (here), index), axis_2)
    valid = Less (index, Unsqueeze (count, axis_1))
    path = Where (valid, nodes, none)
    added = GatherND <batch_dims = 1> (choice, Unsqueeze (nodes, axis_2))
    accepted = Where (valid, added, none)
    next = GatherND <batch_dims = 1> (choice, ReduceMax (nodes, axis_1))
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
