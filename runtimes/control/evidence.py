"""How often drafted rows were accepted, by class of proposal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graftline.tree import Tree

LATELY = 24.0
"""Trials of earlier texts that count in the next."""


class Walk:
    """A proposal, its first `rows` if so many are given, followed along what was then emitted,
    whether or not it was ever scored."""

    __slots__ = ("accepted", "chain", "decided", "expected", "node", "parents", "signal", "tokens")

    def __init__(
        self, signal: int, tree: Tree, expected: float = 0.0, rows: int | None = None
    ) -> None:
        self.signal = signal
        self.accepted, self.expected = 0, expected
        """Tokens accepted so far, and those expected of the rows that are followed."""
        self.tokens, self.parents = tree.token_list[:rows], tree.parent_list
        self.chain = tree.is_chain
        self.node = 0
        self.decided = 1
        """Rows before this one are known to be accepted or not."""

    def step(self, token: int) -> bool:
        """Move to the child that carries `token`; false when none does."""
        tokens, parents, node = self.tokens, self.parents, self.node
        if self.chain:
            hit = node + 1 < len(tokens) and tokens[node + 1] == token
            self.node += hit
            self.accepted += hit
            return hit
        for child in range(node + 1, len(tokens)):
            if tokens[child] == token and parents[child] == node:
                self.node = child
                self.accepted += 1
                return True
        return False


class Evidence:
    """How often each row of proposals of one class was accepted, forgetting exponentially.

    The estimate of a row starts from the estimate of the row before, times the prior's ratio: what
    is learned about the first rows carries to rows that were seldom reached. No row is believed
    more than the one before it: proposals have the most promising first, and where a rare row was
    accepted by luck, every row behind it would inherit the luck.
    """

    def __init__(self, prior: Sequence[float], horizon: float, weight: float) -> None:
        self._prior, self._ratio = prior, _ratios(prior)
        self._keep, self._weight = 1.0 - 1.0 / horizon, weight
        self._hits, self._trials = [0.0] * len(prior), [0.0] * len(prior)
        self._reach, self._sums = [1.0], [0.0]
        """Of as many rows as were asked for since something before them changed: their chances, and
        the sums of all up to them, the root's left out."""

    def __len__(self) -> int:
        return len(self._prior)

    def record(self, first: int, last: int, hit: bool) -> None:
        """Rows first .. last were offered; `last` was accepted if `hit`, the others were not."""
        hits, trials, keep = self._hits, self._trials, self._keep
        last = min(last, len(hits) - 1)
        for row in range(first, last + 1):
            trials[row] = trials[row] * keep + 1.0
            hits[row] *= keep
        if hit and first <= last:
            hits[last] += 1.0
        del self._reach[first:], self._sums[first:]

    def follow(self, walk: Walk, fresh: Sequence[int]) -> bool:
        """Advance a walk along `fresh` and record what that decides; false when it is over."""
        for token in fresh:
            if not walk.step(token):
                self.record(walk.decided, len(walk.tokens) - 1, hit=False)
                return False
            self.record(walk.decided, walk.node, hit=True)
            walk.decided = walk.node + 1
        return walk.decided < len(walk.tokens)

    def rest(self) -> None:
        """Another text begins. What is known counts as LATELY trials at most, and the belief moves
        to half-way between what is known and what was first believed: were the first belief to
        return whole, every text would pay for the same mistake."""
        pairs = zip(_ratios(self.reach()), _ratios(self._prior), strict=True)
        self._ratio = [(known + first) / 2.0 for known, first in pairs]
        for row, trials in enumerate(self._trials):
            if trials > LATELY:
                self._hits[row] *= LATELY / trials
                self._trials[row] = LATELY
        self._reach, self._sums = [1.0], [0.0]

    def reach(self) -> list[float]:
        """For every row the chance that it is accepted; the root's is 1."""
        self.at(len(self._prior) - 1)
        return self._reach

    def at(self, row: int) -> float:
        """The chance of one row that is accepted, from what is known of it and those before it."""
        reach, weight = self._reach, self._weight
        while row >= len(reach):
            at, before = len(reach), reach[-1]
            known = self._hits[at] + weight * before * self._ratio[at]
            chance = min(before, known / (self._trials[at] + weight))
            reach.append(chance)
            self._sums.append(self._sums[-1] + chance)
        return reach[row]

    def above(self, least: float, rows: int) -> list[float]:
        """The chances of the first rows behind the root, of `rows` in all, up to the first below
        `least`."""
        reach, row = self._reach, 1
        while row < rows and (reach[row] if row < len(reach) else self.at(row)) >= least:
            row += 1
        return reach[1:row]

    def expected(self, rows: int) -> float:
        """Tokens that the first `rows` bring."""
        last = min(rows, len(self._prior)) - 1
        self.at(last)
        return self._sums[last]


def _ratios(reach: Sequence[float]) -> list[float]:
    """Of every row's chance to that of the row before."""
    return [1.0, *(b / a if a > 0 else 0.0 for a, b in pairwise(reach))]
