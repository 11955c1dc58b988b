"""From what draft heads say of their candidates to the chances that these come true."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from graftline.runtimes.chances.calibration import Calibration

KEEP = 1.0 - 1.0 / 300.0
"""What every further trial leaves of the earlier ones."""
WEIGHT = 2.0
"""Expected hits that a belief counts as much as."""


FIRST = (0.55, 0.15, 0.07, 0.04, 0.03, 0.02, 0.02, 0.01, 0.01, 0.01)
"""By rank, the chance of a candidate of a first head while nothing is known of it; about what heads
of a published model have (arXiv 2401.10774, figure 4)."""
Told = tuple[list[int], list[float]]
"""Candidates for a token, best first, and their shares."""
Said = dict[tuple[int, ...], Told]
"""By the tokens drafted behind the root, the candidates that come next."""


def told(said: Mapping[tuple[int, ...], Told], fresh: Sequence[int]) -> Iterator[
    tuple[int, Told, int]
]:
    """For every depth at which something was said behind what came, that and what came next."""
    for depth, token in enumerate(fresh):
        if (known := said.get(tuple(fresh[:depth]))) is None:
            return
        yield depth, known, token


def ranked(best: float, width: int) -> tuple[float, ...]:
    """By rank, chances of candidates of which the likeliest has the chance `best`, and the others
    share what is left as those of an unknown head do."""
    left = (1.0 - best) / (1.0 - FIRST[0])
    return best, *(left * share for share in FIRST[1:width])


class HeadChances:
    """A candidate's chance, given that those of the heads before it came true, is the share that
    its head gives it times a factor: hits over expected hits, of its head and its rank. A rank is
    believed to do as its head does, a head as it says of itself. The last head stands for all
    behind it: one that is asked again at every depth is the only one."""

    def __init__(self, heads: int, width: int) -> None:
        self._hits = [[0.0] * width for _ in range(heads)]
        self._expected = [[0.0] * width for _ in range(heads)]
        self._best = [1.0] * heads
        """Of each head, how often the likeliest of its candidates came true lately."""

    def of(self, shares: Sequence[Sequence[float]]) -> list[list[float]]:
        """[heads][ranks]: chances of candidates of these shares, of all heads."""
        return [self.of_head(head, given) for head, given in enumerate(shares)]

    def of_head(self, head: int, shares: Sequence[float]) -> list[float]:
        """Of one head's candidates."""
        at = self._at(head)
        hits, expected = self._hits[at], self._expected[at]
        whole = (sum(hits) + WEIGHT) / (sum(expected) + WEIGHT)
        return [
            min(share * (h + WEIGHT * whole) / (e + WEIGHT), 1.0)
            for h, e, share in zip(hits, expected, shares, strict=True)
        ]

    def usual(self, head: int) -> float:
        """What the likeliest of a head's candidates usually comes to, while it has not been asked.
        """
        return self._best[self._at(head)]

    def record(self, head: int, ids: Sequence[int], shares: Sequence[float], token: int) -> None:
        """A token came where a head, those before it having been right, had these candidates."""
        at = self._at(head)
        hits, expected = self._hits[at], self._expected[at]
        for rank, (candidate, share) in enumerate(zip(ids, shares, strict=True)):
            hits[rank] = hits[rank] * KEEP + (candidate == token)
            expected[rank] = expected[rank] * KEEP + share
        self._best[at] += 0.02 * ((ids[0] == token) - self._best[at])

    def _at(self, head: int) -> int:
        return min(head, len(self._hits) - 1)

    def learn(self, said: Mapping[tuple[int, ...], Told], fresh: Sequence[int]) -> None:
        """The tokens `fresh` came, where that was said."""
        for head, (ids, shares), token in told(said, fresh):
            self.record(head, ids, shares, token)


def noted(
    said: Said,
    ranks: HeadChances,
    depth: int,
    paths: Iterable[Sequence[int]],
    ids: Sequence[list[int]],
    shares: Sequence[list[float]],
) -> list[list[float]]:
    """Note what is said behind nodes of one depth of a tree: their `paths`, and of each its
    candidates and their shares. Returns the chances of these."""
    said.update(zip(map(tuple, paths), zip(ids, shares, strict=True), strict=True))
    return [ranks.of_head(depth, given) for given in shares]


def judged(
    said: Said, ranks: HeadChances, calibration: Calibration, fresh: Sequence[int]
) -> None:
    """Learn from the tokens `fresh`, which came where that was said; it is forgotten then."""
    for _, (ids, shares), token in told(said, fresh):
        calibration.record(shares[0] / sum(shares), ids[0] == token)
    ranks.learn(said, fresh)
    said.clear()
