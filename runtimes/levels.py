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

    def __len__(self) -> int:
        """Slots that it takes behind the sequence."""
        return max(len(self._nodes) - 1, 0)

    def read(self, nodes: Sequence[int]) -> Read:
        """To read `nodes`, all of one depth, whose parents were read; the root, with what the
        sequence lacks, before all others."""
        above = [self._growth.parents[node] for node in nodes]
        for node in nodes:
            self._place[node] = len(self._nodes)
            self._nodes.append(node)
        if above[0] < 0:
            return self._reader.read([])
        features = self.features([self._place[parent] for parent in above])
        return self._reader.level(self.tree(), len(nodes), features)

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
