"""What a step's inputs follow from: positions and mask of a tree, out of its parent pointers."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graftline.passes.graph.emit import Emit
from graftline.passes.graph.text import write
from graftline.plugins.spec import over_ancestors

# nodes without a parent point at themselves, which adds nothing
_ROUNDS, REACH = over_ancestors("reach", "Max")
"""[B, N, N] int64: 1 where column j is row i or an ancestor of it."""
_TEXT = f"""
    start = Unsqueeze (write_index, axis_1)
    index = Range (zero, Squeeze (Shape <start = 1, end = 2> (tokens), axis_0), one)
    parent = Where (Less (parents, zero), index, parents)
    up0 = Unsqueeze (parent, axis_2)
    square = Concat <axis = 0> (Shape (parent), Shape (index))
    reach0 = Expand (Cast <to = 7> (Equal (Unsqueeze (index, axis_1), index)), square)
    {_ROUNDS}
    depth = Sub (ReduceSum <keepdims = 0> ({REACH}, axis_2), one)
    positions = Add (start, depth)
    slots_1 = Shape <start = 2, end = 3> (cache)
    committed = Less (Range (zero, Squeeze (slots_1, axis_0), one), start)
    seen = Expand (Unsqueeze (committed, axis_1), Concat <axis = 0> (Shape (tokens), slots_1))
    places = Expand (Unsqueeze (Add (start, index), axis_1), Shape ({REACH}))
    visible = ScatterElements <axis = 2> (seen, places, Cast <to = 9> ({REACH}))
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
