"""A draft head as a draft engine: what it reads besides tokens are features of its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graftline.runtimes.chances.calibration import USUAL
from graftline.runtimes.draft_engine import OwnCaches, Read, RowsCost, usual_cost
from graftline.runtimes.draft_seats import SeatedSession, TreeSession
from graftline.runtimes.session import Floats, Scores, Show, Tap


@dataclass(frozen=True)
class WalkedScores(Scores):
    """Of a head that walks its block: `argmax` is what it drafts, each behind the one before it."""

    confidence: Floats | None = None
    """[B, N]: the chance that each is accepted, where the head says so."""


class HeadSession(SeatedSession, TreeSession, Protocol):
    """A session of a head's graph."""

    width: int
    """Numbers of a feature."""
    state: Tap
    """Which of its hidden states stands for the next feature."""

    def follow(
        self,
        row: int,
        length: int,
        tokens: Sequence[int],
        asked: int = 1,
        features: Floats | None = None,
        show: Show | None = None,
    ) -> Scores:
        """As of any draft, with a feature [N, H] for every token. `show` is shown the states of all
        rows, in one piece or several."""
        ...

    def follow_rows(
        self,
        first: int,
        starts: Sequence[int],
        tokens: Sequence[int],
        features: Floats | None = None,
    ) -> Scores:
        """As of any draft, with a feature [B, H] for every token."""
        ...


@dataclass(eq=False, slots=True)
class FeatureRead(Read):
    """Tokens and their features [N, H]. `show`: who is shown the states of all rows, where another
    layer reads them; of a single row they come with its scores, and nothing is shown."""

    features: Floats | None = None
    show: Show | None = None

    @property
    def alone(self) -> bool:
        """Also where the states of several rows are wanted: calls with others keep the last's."""
        return self.asked > 1 or self.show is not None

    def scores(self) -> Scores:
        engine, seat, tokens = self.engine, self.seat, self.tokens
        assert isinstance(engine, FeatureEngine)
        seat.end = self.start + len(tokens)
        features, show = self.features, self.show
        return engine.head.follow(seat.row, self.start, tokens, self.asked, features, show)

    def before(self) -> Read:
        assert self.features is not None
        tokens, features = self.tokens[:-1], self.features[:-1]
        return FeatureRead(self.engine, self.seat, self.start, tokens, features=features)


class FeatureEngine(OwnCaches):
    """An opened head, for all sequences that draft with it, on caches of its own. `deeper`: of a
    head of several layers of which each drafts a token, the engines of those behind the first."""

    def __init__(
        self,
        session: HeadSession,
        reads: Tap,
        step: float,
        reading: float = 0.0,
        agreement: float = USUAL,
        rows_cost: RowsCost = usual_cost,
        own: Callable[[], OwnCaches] | None = None,
        deeper: Sequence[FeatureEngine] = (),
    ) -> None:
        """`reads`: which hidden state of the target; `reading`: milliseconds of one more row that
        is read and not scored."""
        super().__init__(session, step, agreement, rows_cost, own)
        self.head, self.reads, self.reading, self.deeper = session, reads, reading, deeper

    def _last_of_each(
        self, first: int, starts: Sequence[int], group: Sequence[Read]
    ) -> Scores:
        features = np.zeros((len(starts), self.head.width), np.float32)
        tokens = [group[0].tokens[-1]] * len(starts)
        for read in group:
            place = read.seat.row - first
            assert isinstance(read, FeatureRead)
            assert read.features is not None
            tokens[place], features[place] = read.tokens[-1], read.features[-1]
        return self.head.follow_rows(first, starts, tokens, features)
