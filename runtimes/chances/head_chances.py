"""From what parallel heads say of their candidates to the chances that these come true."""

from __future__ import annotations

from collections.abc import Sequence

KEEP = 1.0 - 1.0 / 300.0
"""What every further trial leaves of the earlier ones."""
WEIGHT = 2.0
"""Expected hits that a belief counts as much as."""


class HeadChances:
    """A candidate's chance, given that those of the heads before it came true, is the share that
    its head gives it times a factor: hits over expected hits, of its head and its rank. A rank is
    believed to do as its head does, a head as it says of itself."""

    def __init__(self, heads: int, width: int) -> None:
        self._hits = [[0.0] * width for _ in range(heads)]
        self._expected = [[0.0] * width for _ in range(heads)]

    def of(self, shares: Sequence[Sequence[float]]) -> list[list[float]]:
        """[heads][ranks] chances of candidates of these shares."""
        rows = zip(self._hits, self._expected, shares, strict=True)
        return [self._row(hits, expected, given) for hits, expected, given in rows]

    def record(
        self,
        ids: Sequence[Sequence[int]],
        shares: Sequence[Sequence[float]],
        fresh: Sequence[int],
    ) -> None:
        """The tokens `fresh` came, the first where head 0 had its candidates, and so on. Whatever
        lies behind them says nothing."""
        rows = zip(self._hits, self._expected, ids, shares, fresh, strict=False)
        for hits, expected, candidates, given, token in rows:
            for rank, (candidate, share) in enumerate(zip(candidates, given, strict=True)):
                hits[rank] = hits[rank] * KEEP + (candidate == token)
                expected[rank] = expected[rank] * KEEP + share

    @staticmethod
    def _row(hits: list[float], expected: list[float], shares: Sequence[float]) -> list[float]:
        head = (sum(hits) + WEIGHT) / (sum(expected) + WEIGHT)
        return [
            min(share * (h + WEIGHT * head) / (e + WEIGHT), 1.0)
            for h, e, share in zip(hits, expected, shares, strict=True)
        ]
