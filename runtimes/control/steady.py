"""A mean that follows slowly what drifts, and hardly notices a hitch."""

from __future__ import annotations

from dataclasses import dataclass

SETTLING = 0.1
"""How much of a surprise is believed to stay, once the mean has settled."""


@dataclass
class Steady:
    """The mean of the first values, then one that forgets; a value over twice what is usual, as
    after an interruption, counts as twice."""

    value: float = 0.0
    count: float = 0
    """Values so far. One that is said to stand for many at the start moves slowly from there."""

    def add(self, value: float, weight: float = 1.0) -> None:
        """One more value, which says as much as `weight` others, 1 or more."""
        known = self.value if self.count else value
        self.count += weight
        share = max(1.0 - (1.0 - SETTLING) ** weight, weight / self.count)
        self.value = known + share * (min(value, 2.0 * known) - known)
