"""What a step's inputs follow from: positions and mask of a tree, out of its parent pointers."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graftline.passes.graph.emit import Emit
from graftline.passes.graph.text import write
from graftline.plugins.spec import TREE_LIMIT, doublings

# By doubling: after r rounds a row knows its 2^r nearest ancestors in reach{r}, and up{r} points
# past them. Nodes without a parent point at themselves, which adds nothing.
_ROUNDS = "".join(
    f"""
    above{r} = GatherND <batch_dims = 1> (reach{r}, up{r})
    reach{r + 1} = Max (reach{r}, above{r})
    up{r + 1} = GatherND <batch_dims = 1> (up{r}, up{r})"""
    for r in range(doublings(TREE_LIMIT))
)
REACH = f"reach{doublings(TREE_LIMIT)}"
"""[B, N, N] int64: 1 where column j is row i or an ancestor of it."""
_TEXT = f"""
    zero = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64 {{1}}> ()
    axis_0 = Constant <value = int64[1] {{0}}> ()
    axis_1 = Constant <value = int64[1] {{1}}> ()
    axis_2 = Constant <value = int64[1] {{2}}> ()
    start = Unsqueeze (write_index, axis_1)
    rows_1 = Shape <start = 1, end = 2> (tokens)
    rows = Squeeze (rows_1, axis_0)
    index = Range (zero, rows, one)
    top = Less (parents, zero)
    parent = Where (top, index, parents)
    up0 = Unsqueeze (parent, axis_2)
    row = Unsqueeze (index, axis_1)
    own_column = Equal (row, index)
    own_number = Cast <to = 7> (own_column)
    parent_shape = Shape (parent)
    index_shape = Shape (index)
    square = Concat <axis = 0> (parent_shape, index_shape)
    reach0 = Expand (own_number, square)
    {_ROUNDS}
    count = ReduceSum <keepdims = 0> ({REACH}, axis_2)
    depth = Sub (count, one)
    positions = Add (start, depth)
    slots_1 = Shape <start = 2, end = 3> (cache)
    slots = Squeeze (slots_1, axis_0)
    slot = Range (zero, slots, one)
    committed = Less (slot, start)
    committed_rows = Unsqueeze (committed, axis_1)
    token_shape = Shape (tokens)
    seen_shape = Concat <axis = 0> (token_shape, slots_1)
    seen = Expand (committed_rows, seen_shape)
    own_slot = Add (start, index)
    own_row = Unsqueeze (own_slot, axis_1)
    reach_shape = Shape ({REACH})
    places = Expand (own_row, reach_shape)
    ancestors = Cast <to = 9> ({REACH})
    visible = ScatterElements <axis = 2> (seen, places, ancestors)
    mask = Unsqueeze (visible, axis_1)
"""


@dataclass
class TreeInputs:
    """Values computed from parents [B, N]: -1 at node 0, and -1 again at padding.

    `depth`, `positions` [B, N] int64; `mask` [B, 1, N, S] bool: a node sees the committed slots,
    its ancestors and itself; node j lies in slot write_index + j. Padding has depth 0. A tree has
    at most TREE_LIMIT nodes.
    """

    emit: Emit
    tokens: ir.Value
    parents: ir.Value
    write_index: ir.Value
    cache: ir.Value
    """Any cache [B, K, S, D], for its number of slots."""
    depth: ir.Value = field(init=False)
    positions: ir.Value = field(init=False)
    mask: ir.Value = field(init=False)

    def __post_init__(self) -> None:
        inputs = {
            "tokens": self.tokens, "parents": self.parents, "write_index": self.write_index,
            "cache": self.cache,
        }  # fmt: skip
        made, names = ("depth", "positions", "mask"), ("depth", "tree.positions", "tree.mask")
        self.depth, self.positions, self.mask = write(self.emit, _TEXT, inputs, made, names)
