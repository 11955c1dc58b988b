"""Drafts as they went: what the trained length policies learn from."""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass, field

from graftline.runtimes.lengths.length import Length


@dataclass(frozen=True)
class Draft:
    """One judged draft: (confidence, entropy) of every offered token, and how many were accepted.
    """

    steps: tuple[tuple[float, float], ...]
    accepted: int


@dataclass
class Recorded:
    """A length policy that writes down what it saw; decides as `length` does. Forks write into the
    same list."""

    length: Length
    drafts: MutableSequence[Draft] = field(default_factory=list[Draft])

    def __post_init__(self) -> None:
        self._steps: list[tuple[float, float]] = []

    def fork(self) -> Recorded:
        return Recorded(self.length.fork(), self.drafts)

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        del self._steps[depth:]
        self._steps.append((confidence, entropy))
        return self.length.go_on(depth, confidence, entropy)

    def observe(self, accepted: int, offered: int) -> None:
        """Keeps the draft when every offered token was asked about."""
        if offered <= len(self._steps):
            self.drafts.append(Draft(tuple(self._steps[:offered]), accepted))
        self.length.observe(accepted, offered)
