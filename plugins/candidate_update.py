"""CandidateUpdate: the target's top-k of every scored node becomes its token's candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

# Nodes are numbered through the batch, and a node's place in the order of writing is its weight.
# Nodes with one token all write what the last of them writes; padding writes what its root does.
BODY = """
    rows = Squeeze (Shape <start = 1, end = 2> (tokens))
    sequence = Range (zero, Squeeze (Shape <start = 0, end = 1> (tokens)), one)
    node = Range (zero, rows, one)
    sequence_column = Unsqueeze (sequence, axis_1)
    matches = Equal (Unsqueeze (path, axis_1), Unsqueeze (node, axis_1))
    base = Mul (ReduceMax <keepdims = 0> (Cast <to = 7> (matches), axis_2), rows)
    weights = Add (Add (base, node), Mul (sequence_column, Mul (rows, two)))
    real = Or (GreaterOrEqual (parents, zero), Equal (node, zero))
    sequence_base = Mul (sequence_column, rows)
    stand_in = Where (real, Add (sequence_base, node), sequence_base)
    token_flat = Reshape (tokens, flat)
    writes = Gather <axis = 0> (token_flat, Reshape (stand_in, flat))
    writes_column = Unsqueeze (writes, axis_1)
    same = Equal (writes_column, Unsqueeze (token_flat, axis_0))
    rivals = Where (same, Reshape (Where (real, weights, none), flat), none)
    winner = ArgMax <axis = 1, keepdims = 0> (rivals)
    by_node = Reshape (topk, Concat <axis = 0> (flat, Shape <start = 2, end = 3> (topk)))
    updated = ScatterND (table, writes_column, Gather <axis = 0> (by_node, winner))
"""


def reference(
    table: Array, tokens: Array, parents: Array, topk: Array, path: Array
) -> tuple[Array, ...]:
    """In the host's order: per sequence all nodes, then the accepted ones again."""
    updated = table.copy()
    for b in range(len(tokens)):
        nodes = [n for n in range(tokens.shape[1]) if n == 0 or parents[b, n] >= 0]
        for node in [*nodes, *(int(n) for n in path[b] if n >= 0)]:
            updated[tokens[b, node]] = topk[b, node]
    return (updated,)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {
        "N": dims["N"], "NP": power_of_two(dims["N"]),
        "W": dims["W"], "WP": power_of_two(dims["W"]),
    } # fmt: skip
    return Plan(constants, (dims["B"], 1))


CANDIDATE_UPDATE = Plugin(
    name="CandidateUpdate",
    module="candidate_update",
    inputs=(
        Tensor("table", "int32", ("V", "W")),
        Tensor("tokens", "int64", ("B", "N")),
        Tensor("parents", "int64", ("B", "N")),
        Tensor("topk", "int32", ("B", "N", "W")),
        Tensor("path", "int64", ("B", "N")),
    ),
    outputs=(Tensor("updated", "int32", ("V", "W")),),
    body=BODY,
    reference=reference,
    plan=plan,
    static=("N", "W"),
    scalars=("B",),
    aliases={"updated": "table"},
)
"""Token Recycling's state (arXiv 2408.08696), `DraftTree`'s table: row tokens[b, n] becomes
topk[b, n]. Where nodes share a token, an accepted node (listed in `path`, padded with -1) wins over
a rejected one, then the later node, and a later sequence wins over both. Padding (parent -1 but at
node 0) writes nothing."""
