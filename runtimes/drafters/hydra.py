"""Hydra: a tree grown by heads of which each reads what those before it have drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import Bid
from graftline.runtimes.head_draft import HeadDraft
from graftline.runtimes.head_reader import Heads, Reading, shares_of
from graftline.runtimes.resources import Resources
from graftline.runtimes.trees.dynamic import grow
from graftline.runtimes.trees.packing import worth_scoring
from graftline.tree import Doubles, Ints, Tree


@dataclass
class Hydra(HeadDraft):
    """Hydra (arXiv 2402.05109): head i reads the state that chose the last token, that token and
    the i drafted behind it, so that its candidates follow from their path. Each depth is one call,
    for the `width` likeliest nodes of the depth before; the tree is EAGLE-2's, of the likeliest
    nodes of all depths. Before each call the likeliest path so far, times what such heads usually
    come to, must be worth it.

    Sequences ask on their own: which nodes go on is known only after the depth before. Candidates
    are point masses.
    """

    name: ClassVar[str] = "hydra"
    sequential: ClassVar[bool] = True
    width: int = 4
    """Nodes of a depth that go on, and children of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise GraftlineError(f"hydra: width={self.width} is not valid; use at least 1")

    def equip(self, resources: Resources) -> None:
        """Open the heads. Raises GraftlineError for a bundle without any."""
        self._heads: Heads = self.open(resources)
        self.take(self, Reading())
        self._said: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}
        """By the tokens drafted behind the root: candidates that come next, and their shares."""

    def fork(self) -> Hydra:
        other = Hydra(self.rows, self.width)
        other._heads, other._said = self._heads, {}
        other.take(self, Reading())
        return other

    def start(self, context: Sequence[int]) -> None:
        super().start(context)
        self._said = {}

    def drafted(self, bid: Bid) -> Tree:
        self.reads, self._said = 0, {}
        rows, heads = min(bid.rows, self.rows), self._heads
        if self.reading.hidden is None or rows < 2:
            return Tree.chain((self.last,))
        depth, width = min(heads.heads, rows - 1), min(self.width, heads.width, rows - 1)

        def candidates(tree: Tree, nodes: Sequence[int]) -> tuple[Ints, Doubles]:
            return self._candidates(tree, nodes, bid)

        tree = grow(self.last, candidates, rows, depth, width)
        return worth_scoring(tree, bid.keep)

    def _candidates(self, tree: Tree, nodes: Sequence[int], bid: Bid) -> tuple[Ints, Doubles]:
        """What the next head says behind these nodes, all of one depth; nothing where asking it is
        not worth its price."""
        paths = [tree.path_to(node) for node in nodes]
        head = len(paths[0]) - 1
        usual = self.chances.usual(head)
        if head and max(_reach(tree, path) for path in paths) * usual < bid.draft[head + 1]:
            return np.zeros((len(nodes), 1), np.int64), np.zeros((len(nodes), 1))
        self.reads += 1
        tokens = np.asarray([tree.tokens[list(path)] for path in paths])
        assert self.reading.hidden is not None
        hidden = np.broadcast_to(self.reading.hidden, (len(nodes), len(self.reading.hidden)))
        ids, logits = self._heads.answer(np.ascontiguousarray(hidden), head, tokens)
        shares, chances = shares_of(logits[:, 0]).tolist(), list[list[float]]()
        for path, said, given in zip(tokens.tolist(), ids[:, 0].tolist(), shares, strict=True):
            self._said[tuple(path[1:])] = said, given
            chances.append(self.chances.of_head(head, given))
        return ids[:, 0], np.asarray(chances)

    def learn(self, fresh: Sequence[int]) -> None:
        self.chances.learn(self._said, fresh)
        self._said = {}


def _reach(tree: Tree, path: Sequence[int]) -> float:
    """The chance of a path."""
    assert tree.probs is not None
    return float(np.prod(tree.probs[list(path)]))
