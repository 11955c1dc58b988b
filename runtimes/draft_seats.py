"""Where each sequence lies in the caches that a draft model has of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import finalize

from graftline.facts import DecoderFacts
from graftline.runtimes.session import Bools, Floats, Ints, Scores


class DraftSession(Protocol):
    """What a draft engine asks of a session: rows at explicit slots, and nothing is committed."""

    facts: DecoderFacts
    capacity: int

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        """The last `asked` rows' scores (N of them) of `tokens`, put behind the first `length`
        slots of sequence `row`."""
        ...

    def follow_rows(self, first: int, starts: Sequence[int], tokens: Sequence[int]) -> Scores:
        """Scores [B, 1] of one token for each of the sequences from `first` on, in one call; each
        is put into the slot that `starts` says, and sees all slots before it."""
        ...


class TreeSession(DraftSession, Protocol):
    """One that reads trees level by level."""

    candidates: int
    """Likeliest tokens that its scores name; 0: none."""

    @property
    def supports_trees(self) -> bool:
        """True when `follow_level` may be called."""
        ...

    def follow_level(
        self,
        row: int,
        base: int,
        start: int,
        tokens: Sequence[int],
        features: Floats | None,
        depth: int,
        seen: Bools,
    ) -> Scores:
        """The scores [1, N] of N nodes of a tree behind the first `base` slots of sequence `row`,
        all `depth` levels below its root, which holds the last of those. They are put into the
        slots from `start` on; `seen` [N, start - base + N] says which of the tree's slots each of
        them sees, besides all before. `features` [N, H]: what a draft head reads with them."""
        ...


class SeatedSession(DraftSession, Protocol):
    """One with caches of its own."""

    @property
    def lengths(self) -> Ints:
        """[B]: slots of each sequence that are moved along with it."""
        ...

    def reset(self, batch: int) -> None:
        """Forget everything and make room for `batch` sequences."""
        ...

    def seat(self) -> int:
        """Make room for one more sequence, empty, behind the others; its row."""
        ...

    def leave(self, row: int) -> None:
        """Forget sequence `row`. The last sequence takes its row, so that rows have no gaps."""
        ...

    def advance(self, row: int, count: int) -> None:
        """Count `count` more slots of sequence `row` as committed."""
        ...


class Committed(Protocol):
    """The session of a target."""

    @property
    def lengths(self) -> Ints:
        """[B]: committed positions of each sequence."""
        ...


@dataclass(eq=False, slots=True)
class Seat:
    """A sequence's place in a draft's caches: its row there, and how many slots, from the first on,
    its calls have written."""

    row: int = 0
    end: int = 0


class Seats(Protocol):
    """Where the sequences of one set of caches lie, for all engines that work on it."""

    shares: bool
    """True when the caches are the target's, so that they hold all that the target committed."""

    def take(self, owner: object) -> Seat:
        """A seat until `owner` is no longer referred to."""
        ...

    def place(self, seat: Seat, row: int) -> None:
        """Its sequence drafts now, and is in that row of the target's batch."""
        ...

    def free(self) -> None:
        """Give back the seats whose owners are gone; between two calls of the session."""
        ...

    def end(self, row: int) -> int:
        """The first slot behind all that the sequence of that row holds."""
        ...


class OwnSeats:
    """Of caches of the draft's own, a seat for each sequence. Rows have no gaps: who takes the row
    of one that has left is told by its seat."""

    shares = False

    def __init__(self, session: SeatedSession) -> None:
        session.reset(0)
        self._session = session
        self._taken: list[Seat] = []
        self._left = deque[Seat]()

    def take(self, owner: object) -> Seat:
        self.free()
        self._count()
        seat = Seat(self._session.seat())
        self._taken.append(seat)
        finalize(owner, self._left.append, seat)  # at any time, on any thread: see `free`
        return seat

    def place(self, seat: Seat, row: int) -> None:
        """It stays where it is."""

    def free(self) -> None:
        while self._left:
            seat = self._left.popleft()
            self._count()
            self._session.leave(seat.row)
            last = self._taken.pop()
            if last is not seat:
                self._taken[seat.row], last.row = last, seat.row

    def end(self, row: int) -> int:
        return self._taken[row].end

    def _count(self) -> None:
        """Tell the session which slots are in use: they move with their sequence."""
        for seat, length in zip(self._taken, self._session.lengths.tolist(), strict=True):
            self._session.advance(seat.row, seat.end - length)


class TargetSeats:
    """Of the target's own caches, for its own weights in another precision.

    The draft reads the keys and values that the target computed, so it never reads a prompt or
    catches up, and drafts better than from its own coarser ones (0.70 against 0.63 of its int4
    argmaxes are the fp32 model's on SmolLM2). What it writes lies where the target's next step
    writes: nothing of a draft stays. QuantSpec (arXiv 2502.10424) shares a cache likewise.
    """

    shares = True

    def __init__(self, target: Committed) -> None:
        self._target = target
        self._last: dict[int, Seat] = {}
        """By row, the seat of the last sequence that drafted there."""

    def take(self, owner: object) -> Seat:
        return Seat()

    def place(self, seat: Seat, row: int) -> None:
        seat.row, seat.end, self._last[row] = row, 0, seat

    def free(self) -> None:
        """Rows are the target's to give."""

    def end(self, row: int) -> int:
        committed, seat = int(self._target.lengths[row]), self._last.get(row)
        return committed if seat is None else max(committed, seat.end)
