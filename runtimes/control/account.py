"""What a pacer itself costs, and what it expected: tokens per second, said before each step."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from graftline.runtimes.control.costs import NEAR
from graftline.runtimes.control.marks import Marks
from graftline.runtimes.control.pacer import Pacer
from graftline.runtimes.control.steady import Steady
from graftline.runtimes.drafter import Bid, Drafter
from graftline.tree import Tree

SETTLED = 10
"""Steps that the measured costs stand for."""
HEAVIEST = 5.0
"""Plain steps that one step says as much as, at most."""


def level() -> Steady:
    """How much longer steps take than when costs were measured, before any was made; it outlives a
    request. A step that brings many tokens takes as long as several, and says as much."""
    return Steady(1.0, count=SETTLED)


class Account:
    """A pacer that does as another does, and keeps two accounts: the seconds it spends, and the
    tokens and milliseconds it expected of each step before the step was made."""

    def __init__(self, pacer: Pacer, pace: Steady | None = None) -> None:
        self._pacer, self._pace = pacer, pace or level()
        self.seconds = 0.0
        self._batch = 0
        self._tokens, self._milliseconds = 0.0, 0.0

    @property
    def marks(self) -> Marks:
        """The account so far."""
        return Marks(self.seconds, self._tokens, self._milliseconds)

    def since(self, before: Marks) -> Marks:
        """The account of what has come since."""
        return self.marks.since(before)

    @property
    def expected(self) -> tuple[float, float] | None:
        return self._pacer.expected

    @property
    def asking(self) -> bool:
        return self._pacer.asking

    def begin(self, batch: int) -> None:
        began = perf_counter()
        self._batch = batch
        self._pacer.begin(batch)
        self.seconds += perf_counter() - began

    def join(self) -> None:
        began = perf_counter()
        self._batch += 1
        self._pacer.join()
        self.seconds += perf_counter() - began

    def leave(self, sequence: int) -> None:
        began = perf_counter()
        self._batch -= 1
        self._pacer.leave(sequence)
        self.seconds += perf_counter() - began

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        began = perf_counter()
        rows = self._pacer.choose(proposals, room, past)
        self.seconds += perf_counter() - began
        return rows

    def bid(self, drafters: Sequence[Drafter], room: int) -> Bid | None:
        began = perf_counter()
        bid = self._pacer.bid(drafters, room)
        self.seconds += perf_counter() - began
        return bid

    def bought(self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter]) -> int:
        began = perf_counter()
        rows = self._pacer.bought(proposals, drafters)
        self.seconds += perf_counter() - began
        return rows

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        began = perf_counter()
        self._pacer.learn(sequence, fresh)
        self.seconds += perf_counter() - began

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        """Hands on the times as they would be at the pace at which costs were measured, where the
        machine has become slower since."""
        began = perf_counter()
        expected, ratio = self._pacer.expected, self._pace.value
        if expected is not None:
            tokens, milliseconds = expected
            self._tokens += tokens
            self._milliseconds += milliseconds * ratio
            weight = min(max(tokens / self._batch, 1.0), HEAVIEST)
            self._pace.add(step / milliseconds, weight)
        slower = max(ratio, 1.0)
        made = None if proposing is None else proposing / slower
        self._pacer.took(step / slower, host / slower, made)
        self.seconds += perf_counter() - began
