"""A draft model as second engine, on caches of its own or on the target's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from graftline.facts import DecoderFacts
from graftline.runtimes.chances.calibration import USUAL
from graftline.runtimes.draft_seats import (
    DraftSession,
    OwnSeats,
    Seat,
    SeatedSession,
    Seats,
    TreeSession,
)
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.scores import of_sequence
from graftline.runtimes.session import Bools, Floats, Scores

MANY_ROWS = 0.4
"""What every further row of a call is taken to cost, as a share of the first, where nobody has
measured it."""
IDLE_ROWS = 2
"""Sequences between two that go into one call which may go along, a row each, although they draft
nothing: what another call costs over what a row does, by MANY_ROWS."""

RowsCost = Callable[[int], float]


def usual_cost(rows: int) -> float:
    """What a call of so many rows costs where nobody has measured it, in calls of one row."""
    return 1.0 + MANY_ROWS * (rows - 1)


@dataclass(eq=False, slots=True)
class Read:
    """Tokens that a draft wants read behind the first `start` slots of its seat. It wants the
    scores of the last `asked` of them."""

    engine: DraftEngine
    seat: Seat
    start: int
    tokens: Sequence[int]
    asked: int = 1
    share: float = 1.0
    """What this sequence's part of the call costs, over what it costs to make it for nobody else;
    known with the scores."""

    @property
    def alone(self) -> bool:
        """Whether it takes a call of its own. Several rows of one sequence do:
        GroupQueryAttention takes no more."""
        return self.asked > 1

    def scores(self) -> Scores:
        """The scores of a call for this alone, [1, asked]; valid until the engine's next call."""
        seat, tokens = self.seat, self.tokens
        seat.end = self.start + len(tokens)
        return self.engine.session.follow(seat.row, self.start, tokens, self.asked)

    def before(self) -> Read:
        """To read all but the last token, where there are more."""
        return Read(self.engine, self.seat, self.start, self.tokens[:-1])


@dataclass(eq=False, slots=True)
class LevelRead(Read):
    """Nodes of one depth of a tree, whose ancestors lie behind the first `base` slots; `features`
    [N, H] where a draft head reads any."""

    features: Floats | None = None
    base: int = 0
    depth: int = 0
    seen: Bools | None = None
    """[N, start - base + N]: which of the tree's slots each of them sees."""

    @property
    def alone(self) -> bool:
        """Always: what the rows of a call with others see is all that lies before them."""
        return True

    def scores(self) -> Scores:
        session, seat, tokens = cast("TreeSession", self.engine.session), self.seat, self.tokens
        assert self.seen is not None
        seat.end = self.start + len(tokens)
        return session.follow_level(
            seat.row, self.base, self.start, tokens, self.features, self.depth, self.seen
        )


class DraftEngine:
    """An opened draft model, for all sequences that draft with it. It puts rows behind what its
    caches hold, and commits nothing there: whoever reads says behind which slot."""

    def __init__(
        self,
        session: DraftSession,
        seats: Seats,
        step: float,
        agreement: float = USUAL,
        rows_cost: RowsCost = usual_cost,
        own: Callable[[], OwnCaches] | None = None,
    ) -> None:
        """`step`: milliseconds of one row, on the scale of the target's costs. `agreement`: share
        of its best tokens that are the target's, as far as is known before it is used. `rows_cost`:
        what one call of so many rows costs, all of them with scores, in calls of one row. `own`
        opens the engine on caches of its own, which nobody else has."""
        self.session, self.seats, self.capacity = session, seats, session.capacity
        self.step, self.agreement, self.rows_cost, self._own = step, agreement, rows_cost, own

    @property
    def shares(self) -> bool:
        """True when its caches are the target's, so that it has read all that that committed."""
        return self.seats.shares

    @property
    def facts(self) -> DecoderFacts:
        """What is known of the draft's checkpoint."""
        return self.session.facts

    @property
    def threads(self) -> int:
        """Processor threads that a call keeps busy; 0: it works elsewhere."""
        session = self.session
        return session.threads if isinstance(session, OrtSession) and session.device == "cpu" else 0

    def alone(self) -> DraftEngine:
        """The same engine on caches that nobody else writes to."""
        assert self._own is not None, "nobody opens a sub-model alone"
        return self._own()

    def answers(self, reads: Sequence[Read]) -> Iterator[tuple[Read, Scores]]:
        """Reads of several sequences, one of each, with their scores, which are valid until the
        next ones are asked for; in few calls.

        Reads that ask for one row go together; what their sequences lack before it is read first.
        """
        self.seats.free()
        return self._answers(reads)

    def _answers(self, reads: Sequence[Read]) -> Iterator[tuple[Read, Scores]]:
        single = [read for read in reads if not read.alone]
        for read in reads:
            if read.alone:
                yield read, read.scores()
        for group in self._neighbours(single):
            if len(group) == 1:
                yield group[0], group[0].scores()
            else:
                self._read_before(group)
                yield from self._together(group)

    def _read_before(self, group: Sequence[Read]) -> None:
        """Read all but the last token of each; single tokens together."""
        short: list[Read] = []
        for read in group:
            before = read.before()
            if len(before.tokens) == 1:  # after a draft of which all was accepted
                short.append(before)
            elif before.tokens:
                before.scores()
        for _ in self._answers(short):
            pass

    def _neighbours(self, reads: Sequence[Read]) -> list[list[Read]]:
        """The reads that go into one call: of rows that lie side by side, or nearly. What goes
        along between them must hold something: a first position is unlike all others, and would
        spoil the scale that rows quantized together have."""
        groups: list[list[Read]] = []
        for read in sorted(reads, key=lambda read: read.seat.row):
            between = range(groups[-1][-1].seat.row + 1 if groups else 0, read.seat.row)
            if groups and len(between) <= IDLE_ROWS and all(map(self.seats.end, between)):
                groups[-1].append(read)
            else:
                groups.append([read])
        return groups

    def _together(self, group: Sequence[Read]) -> Iterator[tuple[Read, Scores]]:
        """The last token of each, in one call. Those in the rows between them go along with another
        one's token, behind all that they hold."""
        first, behind = group[0].seat.row, group[-1].seat.row + 1
        starts = [self.seats.end(row) for row in range(first, behind)]
        for read in group:
            place = read.seat.row - first
            starts[place] = read.start + len(read.tokens) - 1
            read.seat.end = starts[place] + 1
        scores = self._last_of_each(first, starts, group)
        share = self.rows_cost(len(starts)) / len(group)
        for read in group:
            read.share = share
            yield read, of_sequence(scores, read.seat.row - first)

    def _last_of_each(
        self, first: int, starts: Sequence[int], group: Sequence[Read]
    ) -> Scores:
        """A call of the last token of each read, for the rows from `first` on."""
        tokens = [group[0].tokens[-1]] * len(starts)
        for read in group:
            tokens[read.seat.row - first] = read.tokens[-1]
        return self.session.follow_rows(first, starts, tokens)


class OwnCaches(DraftEngine):
    """A draft model with caches of its own: one set, with a seat for each sequence."""

    def __init__(
        self,
        session: SeatedSession,
        step: float,
        agreement: float = USUAL,
        rows_cost: RowsCost = usual_cost,
        own: Callable[[], OwnCaches] | None = None,
    ) -> None:
        """`own` opens the engine on other caches; None: nobody else has these."""
        super().__init__(session, OwnSeats(session), step, agreement, rows_cost, own)

    def alone(self) -> DraftEngine:
        return self if self._own is None else self._own()
