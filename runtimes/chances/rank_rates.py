"""What candidates that are still to come are expected to bring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from graftline.runtimes.chances.head_chances import KEEP

WEIGHT = 8.0
"""Trials that the first belief counts as much as."""


class RankRates:
    """How often the candidate of each rank was right, by how far ahead it was foretold, where all
    before it were among the candidates; `first` [depths][ranks] is what is believed at first."""

    def __init__(self, first: Sequence[Sequence[float]]) -> None:
        self._first = first
        self._hits = [[0.0] * len(row) for row in first]
        self._trials = [0.0] * len(first)

    def record(self, depth: int, ids: Sequence[int], token: int) -> None:
        """A token came where these were the candidates, best first."""
        hits = self._hits[depth]
        self._trials[depth] = self._trials[depth] * KEEP + 1.0
        for rank, candidate in enumerate(ids):
            hits[rank] = hits[rank] * KEEP + (candidate == token)

    def rates(self) -> list[list[float]]:
        """[depths][ranks]."""
        rows = zip(self._first, self._hits, self._trials, strict=True)
        return [
            [(h + WEIGHT * f) / (trials + WEIGHT) for f, h in zip(first, hits, strict=True)]
            for first, hits, trials in rows
        ]

    def worth(self, price: float, rows: int) -> list[float]:
        """By depth the tokens that its candidates are expected to bring a step, less what the rows
        that they are scored in cost, of `price` tokens each: the rows whose chance is above it, and
        no more than so many. Never rising."""
        found: list[float] = []
        level = [1.0]
        for ranks in self.rates():
            paths = (above * rate for above in level for rate in ranks)
            level = sorted((chance for chance in paths if chance > price), reverse=True)[:rows]
            found.append(sum(level) - price * len(level))
        return list(accumulate(found, min))
