"""How often the tokens of a draft come true, by their depth."""

from __future__ import annotations

from itertools import accumulate
from operator import mul

from graftline.runtimes.chances.budget import Budget


class DepthChances:
    """For every depth of a chain, the chance that its token is accepted when those before it were.

    Shared by the drafts of all sequences. Forgets slowly; `weight` trials come first, in which a
    depth does as the one before it is known to do, and the first as the draft's best tokens are
    (`agreement`): so what was never drafted is drafted where the depths before it come true, and
    a draft that is good at its first token only shows it within a few steps.
    """

    def __init__(
        self, depths: int, agreement: float, weight: float = 4.0, horizon: float = 150.0
    ) -> None:
        self._hits, self._trials = [0.0] * depths, [0.0] * depths
        self._agreement, self._weight = agreement, weight
        self._keep = 1.0 - 1.0 / horizon
        self._budget = Budget()

    def each(self) -> list[float]:
        """The chance of every depth, from the first token's."""
        chances, before = list[float](), self._agreement
        for hits, trials in zip(self._hits, self._trials, strict=True):
            before = (hits + self._weight * before) / (trials + self._weight)
            chances.append(before)
        return chances

    def reach(self) -> list[float]:
        """The chance that the chain stands up to each depth; the root's, at 0, is 1."""
        return list(accumulate(self.each(), mul, initial=1.0))

    def affords(self, price: float, income: float) -> bool:
        """Put `income` into the budget for depths that are left out, and take `price` from it where
        it holds that much: then one may be tried."""
        self._budget.save(income, most=price)
        return self._budget.pays(price)

    def record(self, drafted: int, accepted: int) -> None:
        """Of a chain of `drafted` tokens the first `accepted` stood. What lies behind the first
        that did not says nothing."""
        for place in range(min(accepted + 1, drafted)):
            self._hits[place] = self._hits[place] * self._keep + (place < accepted)
            self._trials[place] = self._trials[place] * self._keep + 1.0
