"""From a draft's confidence to the chance that the target accepts."""

from __future__ import annotations

from bisect import bisect_right

USUAL = 0.65
"""Acceptance of a draft model of which nothing is known."""
_EDGES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.995)
_RECENT = 1.0 - 1.0 / 50.0


class Calibration:
    """How often a drafted token is accepted, by bins of the draft's largest probability: a
    quantized draft agrees with its target far more often than it believes. Forgets slowly;
    `weight` trials of a line that fits the mean `agreement` come first."""

    def __init__(
        self, agreement: float = USUAL, weight: float = 6.0, horizon: float = 300.0
    ) -> None:
        middle = [(a + b) / 2 for a, b in zip((0.0, *_EDGES), (*_EDGES, 1.0), strict=True)]
        self._hits = [weight * max(0.05, 1 - 2 * (1 - agreement) * (1 - m)) for m in middle]
        self._trials = [weight] * len(middle)
        self._seen = [1.0] * len(middle)
        """Late answers of each confidence, forgotten together."""
        self._keep = 1.0 - 1.0 / horizon
        self.usual = agreement
        """Acceptance of whatever was drafted lately."""

    def of(self, confidence: float) -> float:
        """The chance of a token drafted with that confidence."""
        place = bisect_right(_EDGES, confidence)
        return self._hits[place] / self._trials[place]

    def outcomes(self) -> list[tuple[float, float]]:
        """What an answer to come may be worth: pairs of the share of answers that have such a
        confidence, and their chance."""
        total = sum(self._seen)
        chances = (hits / trials for hits, trials in zip(self._hits, self._trials, strict=True))
        return [(seen / total, chance) for seen, chance in zip(self._seen, chances, strict=True)]

    def record(self, confidence: float, hit: bool) -> None:
        """A token drafted with that confidence was judged."""
        place = bisect_right(_EDGES, confidence)
        self._hits[place] = self._hits[place] * self._keep + hit
        self._trials[place] = self._trials[place] * self._keep + 1.0
        self._seen = [seen * _RECENT for seen in self._seen]
        self._seen[place] += 1.0
        self.usual += 0.02 * (hit - self.usual)
