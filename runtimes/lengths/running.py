"""Lengths from how the last drafts of this sequence went."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.errors import GraftlineError


@dataclass
class Running:
    """Two tokens more after a draft that was accepted whole, one less after any other: the
    heuristic schedule of assisted generation in Hugging Face transformers."""

    first: int = 5
    """Length of the first draft."""
    least: int = 1
    most: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.first <= self.most:
            raise GraftlineError(
                f"length running: least={self.least}, first={self.first}, most={self.most} do not "
                "fit; use 1 <= least <= first <= most"
            )
        self._length = self.first

    def fork(self) -> Running:
        return Running(self.first, self.least, self.most)

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        return depth < self._length

    def observe(self, accepted: int, offered: int) -> None:
        change = 2 if accepted == offered else -1
        self._length = min(max(self._length + change, self.least), self.most)
