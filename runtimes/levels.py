"""A growing tree that a draft reads depth by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftline.runtimes.draft_engine import Read
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.session import Floats
from graftline.runtimes.trees.dynamic import Growth
from graftline.tree import Tree


class Levels:
    """The nodes of a growing tree that a draft has read behind its sequence."""

    def __init__(self, reader: Reader, growth: Growth) -> None:
        self._reader, self._growth = reader, growth
        self._nodes: list[int] = []
        """In the order in which they were read: their slots, the root's first."""
        self._place: dict[int, int] = {}
        self._paths: list[list[int]] = []
        """Of each the places of its ancestors below the root, and its own."""

    def __len__(self) -> int:
        """Slots that it takes behind the sequence."""
        return max(len(self._nodes) - 1, 0)

    def read(self, nodes: Sequence[int]) -> Read:
        """To read `nodes`, all of one depth, whose parents were read; the root, with what the
        sequence lacks, before all others."""
        growth, first = self._growth, len(self._nodes)
        above = [self._place.get(growth.parents[node], -1) for node in nodes]
        for place, (node, parent) in enumerate(zip(nodes, above, strict=True), first):
            self._place[node] = place
            self._nodes.append(node)
            self._paths.append([*self._paths[parent], place] if place else [])
        if not first:
            return self._reader.read([])
        features = self.features(above)
        depth = len(self._paths[-1])
        if features is None and depth == first and len(nodes) == 1:
            return self._reader.read(growth.path(nodes[0]))  # a chain so far: no mask to fill in
        seen = np.zeros((len(nodes), first - 1 + len(nodes)), np.bool_)
        for row, path in enumerate(self._paths[first:]):
            seen[row, [place - 1 for place in path]] = True
        tokens = [growth.tokens[node] for node in nodes]
        return self._reader.level(tokens, first, depth, seen, features)

    def features(self, parents: Sequence[int]) -> Floats | None:
        """[N, H]: what nodes have besides tokens, by the places of their parents; None: nothing."""
        return None

    def tree(self) -> Tree:
        """All nodes that were read, in this order, each with its chance given its parent."""
        growth, nodes = self._growth, self._nodes
        places = [-1, *(self._place[growth.parents[node]] for node in nodes[1:])]
        return Tree(
            np.asarray([growth.tokens[node] for node in nodes], np.int64),
            np.asarray(places, np.int64),
            np.asarray([growth.given[node] for node in nodes], np.float32),
        )
