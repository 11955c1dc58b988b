"""How often drafted rows were accepted, by class of proposal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graftline.tree import Tree

WEIGHT, HORIZON = 8.0, 48.0
"""Trials that a prior is worth, and over which evidence forgets."""


class Walk:
    """A proposal of one class, its first `rows` if so many are given, followed along what was then
    emitted, whether or not it was ever scored. `node` is its last accepted row; of rows before
    `decided` it is known whether they were accepted."""

    __slots__ = ("decided", "node", "parents", "signal", "tokens")

    def __init__(self, signal: int, tree: Tree, rows: int | None = None) -> None:
        self.signal, self.node, self.decided = signal, 0, 1
        self.tokens, self.parents = tree.token_list[:rows], tree.parent_list

    def step(self, token: int) -> bool:
        """Move to the child that carries `token`; false when none does."""
        for child in range(self.node + 1, len(self.tokens)):
            if self.tokens[child] == token and self.parents[child] == self.node:
                self.node = child
                return True
        return False


class Evidence:
    """How often each row of proposals of one class was accepted, forgetting exponentially.

    The estimate of a row starts, with `weight` trials, from the estimate of the row before, times
    the prior's ratio: what is learned about the first rows carries to rows that were seldom
    reached. No row is believed more than the one before it: proposals have the most promising
    first, and where a rare row was accepted by luck, every row behind it would inherit the luck.
    """

    def __init__(self, prior: Sequence[float], weight: float = WEIGHT) -> None:
        self._weight, self._reach = weight, list[float]()
        self._hits, self._trials = [0.0] * len(prior), [0.0] * len(prior)
        self._ratio = [1.0, *(b / a if a > 0 else 0.0 for a, b in pairwise(prior))]

    def reach(self) -> list[float]:
        """For every row the chance that it is accepted; the root's is 1."""
        if not self._reach:
            before = 1.0
            for hits, trials, ratio in zip(self._hits, self._trials, self._ratio, strict=True):
                known = (hits + self._weight * before * ratio) / (trials + self._weight)
                before = min(before, known)
                self._reach.append(before)
        return self._reach

    def record(self, first: int, last: int, hit: bool) -> None:
        """Rows first .. last were offered; `last` was accepted if `hit`, the others were not."""
        keep = 1.0 - 1.0 / HORIZON
        for row in range(first, min(last + 1, len(self._hits))):
            self._trials[row] = self._trials[row] * keep + 1.0
            self._hits[row] = self._hits[row] * keep + (hit and row == last)
        self._reach = []

    def follow(self, walk: Walk, fresh: Sequence[int]) -> bool:
        """Advance a walk along `fresh` and record what that decides; false when it is over."""
        for token in fresh:
            if not walk.step(token):
                self.record(walk.decided, len(walk.tokens) - 1, hit=False)
                return False
            self.record(walk.decided, walk.node, hit=True)
            walk.decided = walk.node + 1
        return walk.decided < len(walk.tokens)
