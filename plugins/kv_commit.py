"""KVCommit: move the rows of the accepted path to the front of what the step wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graftline.plugins.spec import Array, Dims, Plan, Plugin, Tensor, Values, power_of_two

# Rows behind the path are written onto themselves, so that one TensorScatter does it in place.
BODY = """
    places_1 = Shape <start = 1, end = 2> (path)
    heads_1 = Shape <start = 1, end = 2> (cache)
    stack_1 = Shape <start = 0, end = 1> (cache)
    place = Range (zero, Squeeze (places_1), one)
    source = Where (Less (place, Unsqueeze (count, axis_1)), path, place)
    layers = Div (stack_1, Shape <start = 0, end = 1> (path))
    repeats = Concat <axis = 0> (layers, one_1)
    slots = Tile (Add (source, Unsqueeze (lengths, axis_1)), repeats)
    starts = Tile (lengths, layers)
    head_2 = Unsqueeze (Unsqueeze (Range (zero, Squeeze (heads_1), one), axis_1), last_axis)
    index_shape = Concat <axis = 0> (stack_1, heads_1, places_1, one_1)
    slot_index = Expand (Unsqueeze (Unsqueeze (slots, axis_1), last_axis), index_shape)
    index = Concat <axis = -1> (Expand (head_2, index_shape), slot_index)
    rows = GatherND <batch_dims = 1> (cache, index)
    committed = TensorScatter <axis = 2, mode = "linear"> (cache, rows, starts)
"""


def reference(cache: Array, path: Array, count: Array, lengths: Array) -> tuple[Array, ...]:
    committed = cache.copy()
    for row in range(len(cache)):
        b = row % len(path)
        for place in range(int(count[b])):
            committed[row, :, lengths[b] + place] = cache[row, :, lengths[b] + path[b, place]]
    return (committed,)


def plan(dims: Dims, values: Values, cdiv: Callable[[Any, int], Any]) -> Plan:
    constants = {
        "P": dims["P"], "K": dims["K"], "D": dims["D"], "DP": power_of_two(dims["D"], 16),
        "BLOCK": 16,
    }  # fmt: skip
    return Plan(constants, (dims["R"] * dims["K"], 1))


KV_COMMIT = Plugin(
    name="KVCommit",
    module="kv_commit",
    inputs=(
        Tensor("cache", "T", ("R", "K", "S", "D")),
        Tensor("path", "int64", ("B", "P")),
        Tensor("count", "int64", ("B",)),
        Tensor("lengths", "int64", ("B",)),
    ),
    outputs=(Tensor("committed", "T", ("R", "K", "S", "D")),),
    body=BODY,
    reference=reference,
    plan=plan,
    static=("P", "K", "D"),
    scalars=("B", "S"),
    aliases={"committed": "cache"},
)
"""`cache` stacks the key and value caches of any number of layers: R = layers x B, row r is of
sequence r mod B. Slot lengths[b] + j takes what slot lengths[b] + path[b, j] holds, j < count[b];
no other slot changes. `path` ascends, so path[b, j] >= j and no row is overwritten before it is
read; the P slots from lengths[b] on exist."""
