"""The sub-models of one draft engine on one sequence, and which slots each of them has filled."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.runtimes.draft_engine import DraftEngine, Read
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.draft_seats import Seat


class NestedReader(Reader):
    """The reader of a whole draft engine, with those of its sub-models, all over the same caches.

    What one of them reads is true for the shallower ones too. The deeper ones lack their own
    blocks' part of it: they read those tokens when they are next asked.
    """

    def __init__(
        self, shallower: Sequence[Reader], whole: DraftEngine, vocabulary: int = 0
    ) -> None:
        """`shallower`: those of the sub-models, the shallowest first."""
        super().__init__(whole, vocabulary)
        self.depths: list[Reader] = [*shallower, self]

    @classmethod
    def of(cls, engines: Sequence[DraftEngine], vocabulary: int = 0) -> NestedReader:
        """Of these engines: shallowest first, the whole one last."""
        *shallower, whole = engines
        return cls([Reader(engine, vocabulary) for engine in shallower], whole, vocabulary)

    def start(self, context: Sequence[int], seat: Seat | None = None) -> None:
        super().start(context, seat)
        for reader in self.depths[:-1]:
            reader.start(context, self.seat)

    def append(self, fresh: Sequence[int]) -> None:
        super().append(fresh)
        for reader in self.depths[:-1]:
            reader.append(fresh)

    def ask(self, depth: int, ahead: Sequence[int]) -> Read:
        """To read the sequence and `ahead` with the sub-model of that place."""
        read = self.depths[depth].read(ahead)
        for shallower in self.depths[:depth]:
            shallower.filled(ahead)
        for deeper in self.depths[depth + 1 :]:
            deeper.overwritten(ahead)
        return read
