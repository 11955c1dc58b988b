"""CandidateUpdate: the target's top-k of every scored node becomes its token's candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

# Nodes are numbered through the batch, and a node's place in the order of writing is its weight.
# Nodes with one token all write what the last of them writes; padding writes what its root does.
BODY = """
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    none = Constant <value = int64 {-1}> ()
    flat = Constant <value_ints = [-1]> ()
    front = Constant <value_ints = [0]> ()
    first_axis = Constant <value_ints = [1]> ()
    second_axis = Constant <value_ints = [2]> ()
    width_1 = Shape <start = 2, end = 3> (topk)
    batch_1 = Shape <start = 0, end = 1> (tokens)
    rows_1 = Shape <start = 1, end = 2> (tokens)
    batch = Squeeze (batch_1)
    rows = Squeeze (rows_1)
    sequence = Range (zero, batch, one)
    node = Range (zero, rows, one)
    sequence_column = Unsqueeze (sequence, first_axis)
    node_column = Unsqueeze (node, first_axis)
    path_rows = Unsqueeze (path, first_axis)
    matches = Equal (path_rows, node_column)
    match_numbers = Cast <to = 7> (matches)
    accepted = ReduceMax <keepdims = 0> (match_numbers, second_axis)
    base = Mul (accepted, rows)
    double_rows = Mul (rows, two)
    turn = Mul (sequence_column, double_rows)
    late = Add (base, node)
    weights = Add (late, turn)
    placed = GreaterOrEqual (parents, zero)
    is_root = Equal (node, zero)
    real = Or (placed, is_root)
    sequence_base = Mul (sequence_column, rows)
    own = Add (sequence_base, node)
    stand_in = Where (real, own, sequence_base)
    weight_real = Where (real, weights, none)
    token_flat = Reshape (tokens, flat)
    stand_in_flat = Reshape (stand_in, flat)
    weight_flat = Reshape (weight_real, flat)
    writes = Gather <axis = 0> (token_flat, stand_in_flat)
    writes_column = Unsqueeze (writes, first_axis)
    token_row = Unsqueeze (token_flat, front)
    same = Equal (writes_column, token_row)
    rivals = Where (same, weight_flat, none)
    winner = ArgMax <axis = 1, keepdims = 0> (rivals)
    by_node_shape = Concat <axis = 0> (flat, width_1)
    by_node = Reshape (topk, by_node_shape)
    rows_of_winners = Gather <axis = 0> (by_node, winner)
    updated = ScatterND (table, writes_column, rows_of_winners)
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
    }  # fmt: skip
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
