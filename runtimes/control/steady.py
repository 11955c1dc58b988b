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
    count: int = 0
    """Values so far. One that is said to stand for many at the start moves slowly from there."""

    def add(self, value: float) -> None:
        """One more value."""
        self.count += 1
        known = self.value if self.count > 1 else value
        share = max(SETTLING, 1 / self.count)
        self.value = known + share * (min(value, 2.0 * known) - known)
