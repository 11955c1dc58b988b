"""What a step's inputs follow from: positions and mask of a tree, out of its parent pointers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.passes.graph.emit import Emit
from graftline.plugins.spec import TREE_LIMIT, doublings


@dataclass
class TreeInputs:
    """Values computed from parents [B, N]: -1 at node 0, and -1 again at padding.

    `depth`, `positions` [B, N] int64; `mask` [B, 1, N, S] bool: a node sees the committed slots,
    its ancestors and itself. Padding has depth 0. A tree has at most TREE_LIMIT nodes.
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
        e = self.emit
        self._first = e.const("axes.1", [1], np.int64)
        self._second = e.const("axes.2", [2], np.int64)
        self._one = e.const("one", 1, np.int64)
        self._start = e.op("Unsqueeze", [self.write_index, self._first])
        index = self._range(self.tokens, 1)
        reach = self._reach(index)
        count = e.op("ReduceSum", [reach, self._second], keepdims=0)
        self.depth = e.op("Sub", [count, self._one], "depth")
        self.positions = e.op("Add", [self._start, self.depth], "tree.positions")
        self.mask = self._mask(index, reach)

    def _range(self, value: ir.Value, axis: int) -> ir.Value:
        """[extent] int64: 0 .. the extent of an axis, exclusive."""
        e = self.emit
        size = e.op("Shape", [value], start=axis, end=axis + 1)
        extent = e.op("Squeeze", [size, e.const("axes.0", [0], np.int64)])
        return e.op("Range", [e.const("zero", 0, np.int64), extent, self._one])

    def _reach(self, index: ir.Value) -> ir.Value:
        """[B, N, N] int64: 1 where column j is row i or an ancestor of it.

        By doubling: after r rounds a row knows its 2^r nearest, and `up` points past them. Nodes
        without a parent point at themselves, which adds nothing.
        """
        e = self.emit
        top = e.op("Less", [self.parents, e.const("zero", 0, np.int64)])
        parent = e.op("Where", [top, index, self.parents])
        up = e.op("Unsqueeze", [parent, self._second])
        row = e.op("Unsqueeze", [index, self._first])
        self_only = e.op("Cast", [e.op("Equal", [row, index])], to=ir.DataType.INT64)
        shape = e.op("Concat", [e.op("Shape", [parent]), e.op("Shape", [index])], axis=0)
        reach = e.op("Expand", [self_only, shape])
        for _ in range(doublings(TREE_LIMIT)):
            above = e.op("GatherND", [reach, up], batch_dims=1)
            reach = e.op("Max", [reach, above])
            up = e.op("GatherND", [up, up], batch_dims=1)
        return reach

    def _mask(self, index: ir.Value, reach: ir.Value) -> ir.Value:
        """Committed slots are seen by all rows; node j lies in slot write_index + j."""
        e = self.emit
        committed = e.op("Less", [self._range(self.cache, 2), self._start])
        rows = e.op("Unsqueeze", [committed, self._first])
        slots = e.op("Shape", [self.cache], start=2, end=3)
        shape = e.op("Concat", [e.op("Shape", [self.tokens]), slots], axis=0)
        seen = e.op("Expand", [rows, shape])
        own = e.op("Unsqueeze", [e.op("Add", [self._start, index]), self._first])
        places = e.op("Expand", [own, e.op("Shape", [reach])])
        ancestors = e.op("Cast", [reach], to=ir.DataType.BOOL)
        visible = e.op("ScatterElements", [seen, places, ancestors], axis=2)
        return e.op("Unsqueeze", [visible, self._first], "tree.mask")
