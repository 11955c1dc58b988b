"""Work that has a session to itself, and what ended it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from graftline.runtimes.decoding import Decoding


class Task:
    """Work that has the session to itself: begun when every sequence has left, one step at a time.
    `sequences` are those that it decodes."""

    def __init__(
        self, begin: Callable[[], Iterator[None]], sequences: Sequence[Decoding] = ()
    ) -> None:
        self._begin, self.sequences = begin, sequences
        self._steps: Iterator[None] | None = None
        self.done = False
        self.error: BaseException | None = None

    def step(self) -> None:
        """Make one more step; sets `done` at the last."""
        for one in self.sequences:
            one.check()
        if self.sequences and all(one.done for one in self.sequences):
            self.done = True
            return
        if self._steps is None:
            self._steps = self._begin()
        self.done = next(self._steps, self) is self
        for one in self.sequences:
            one.digest()


def raise_first(ones: Sequence[Decoding | Task]) -> None:
    """Raise what ended one of these, if anything did but the end of its text."""
    for one in ones:
        if one.error is not None:
            raise one.error
