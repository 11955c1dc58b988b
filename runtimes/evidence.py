"""How proposals of the past came true."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graftline.tree import Tree


class Walk:
    """A proposal followed along what was then emitted, whether or not it was ever scored."""

    __slots__ = ("decided", "node", "parents", "signal", "tokens")

    def __init__(self, signal: int, tree: Tree) -> None:
        self.signal = signal
        self.tokens: list[int] = tree.tokens.tolist()
        self.parents: list[int] = tree.parents.tolist()
        self.node = 0
        self.decided = 1
        """Rows before this one are known to be accepted or not."""

    def step(self, token: int) -> bool:
        """Move to the child that carries `token`; false when none does."""
        tokens, parents, node = self.tokens, self.parents, self.node
        for child in range(node + 1, len(tokens)):
            if tokens[child] == token and parents[child] == node:
                self.node = child
                return True
        return False


class Evidence:
    """How often each row of proposals of one class was accepted, forgetting exponentially.

    The estimate of a row starts from the estimate of the row before, times the prior's ratio: what
    is learned about the first rows carries to rows that were seldom reached.
    """

    def __init__(self, prior: Sequence[float], horizon: float, weight: float) -> None:
        self._ratio = [1.0, *(b / a if a > 0 else 0.0 for a, b in pairwise(prior))]
        self._keep, self._weight = 1.0 - 1.0 / horizon, weight
        self._hits, self._trials = [0.0] * len(prior), [0.0] * len(prior)
        self._reach: list[float] | None = None

    def record(self, first: int, last: int, hit: bool) -> None:
        """Rows first .. last were offered; `last` was accepted if `hit`, the others were not."""
        hits, trials, keep = self._hits, self._trials, self._keep
        last = min(last, len(hits) - 1)
        for row in range(first, last + 1):
            trials[row] = trials[row] * keep + 1.0
            hits[row] *= keep
        if hit and first <= last:
            hits[last] += 1.0
        self._reach = None

    def fade(self, most: float) -> None:
        """Weigh what is known as `most` trials at most."""
        for row, trials in enumerate(self._trials):
            if trials > most:
                self._hits[row] *= most / trials
                self._trials[row] = most
        self._reach = None

    def reach(self) -> list[float]:
        """For every row the chance that it is accepted; the root's is 1."""
        if self._reach is None:
            before, reach, weight = 1.0, [1.0], self._weight
            rows = zip(self._hits[1:], self._trials[1:], self._ratio[1:], strict=True)
            for hits, trials, ratio in rows:
                before = (hits + weight * before * ratio) / (trials + weight)
                reach.append(before)
            self._reach = reach
        return self._reach
