"""A draft model as second engine, on caches of its own or on the target's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graftline.facts import DecoderFacts
from graftline.runtimes.chances.calibration import USUAL
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import Scores, Session, call_starts

CHUNK = 32
"""Rows of one call when a draft catches up with its sequence."""
MANY_ROWS = 0.4
"""What every further row of a call is taken to cost, as a share of the first, where nobody has
measured it."""

RowsCost = Callable[[int], float]


def usual_cost(rows: int) -> float:
    """What a call of so many rows costs where nobody has measured it, in calls of one row."""
    return 1.0 + MANY_ROWS * (rows - 1)


class DraftEngine(Protocol):
    """An opened draft model."""

    shares: bool
    """True when its caches are the target's, so that it has read all that the target committed."""
    capacity: int
    step: float
    """Milliseconds of one row, on the scale of the target's costs; 0: not measured."""
    agreement: float
    """Share of its best tokens that are the target's, as far as is known before it is used."""
    rows_cost: RowsCost
    """What one call of so many rows costs, all of them with scores, in calls of one row."""

    @property
    def facts(self) -> DecoderFacts:
        """What is known of the draft's checkpoint."""
        ...

    def alone(self) -> OwnCaches:
        """The same engine on caches that nobody else writes to."""
        ...

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        """The scores of the last `asked` of `tokens` (N of them), put behind the first `length`
        slots of sequence `row` of the target's batch. At least one token."""
        ...


class OwnCaches:
    """A draft model with caches of its own, for one sequence."""

    shares = False

    def __init__(
        self,
        session: Session,
        step: float = 0.0,
        agreement: float = USUAL,
        rows_cost: RowsCost = usual_cost,
    ) -> None:
        self.agreement, self.rows_cost = agreement, rows_cost
        self.session, self.step, self.capacity = session, step, session.capacity
        self._scored = 0
        """Rows of the last call that are not committed yet: committing ends the answer's life."""

    @property
    def facts(self) -> DecoderFacts:
        return self.session.facts

    @property
    def threads(self) -> int:
        """Processor threads that a call keeps busy; 0: it works elsewhere."""
        session = self.session
        return session.threads if isinstance(session, OrtSession) and session.device == "cpu" else 0

    def alone(self) -> OwnCaches:
        return self

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        session, ids = self.session, np.asarray(tokens, np.int64)
        if length == 0:
            self._scored = 0
            session.reset(1)
            if asked == 1:
                return session.prefill([ids])
            length, ids = len(ids) - asked, ids[-asked:]
            if length:
                session.prefill([np.asarray(tokens[:length], np.int64)])
        for start, end in pairwise([*call_starts(len(ids), asked, CHUNK), len(ids)]):
            self._commit(length + start)
            scores, self._scored = session.score(ids[None, start:end]), end - start
        return _last(scores, asked)  # pyright: ignore[reportPossiblyUnboundVariable]

    def _commit(self, length: int) -> None:
        """Hold exactly `length` slots, of those held and those scored last."""
        held = int(self.session.lengths[0])
        if length > held:
            assert length <= held + self._scored
            self.session.commit([range(length - held)])
        elif length < held:
            self.session.truncate([length])
        self._scored = 0


class SharedCaches:
    """The target's own weights in another precision, over the target's own caches.

    The draft reads the keys and values that the target computed, so it never reads a prompt or
    catches up, and drafts better than from its own coarser ones (0.70 against 0.63 of its int4
    argmaxes are the fp32 model's on SmolLM2). What it writes lies where the target's next step
    writes: nothing of a draft stays. QuantSpec (arXiv 2502.10424) shares a cache likewise.
    """

    shares = True

    def __init__(
        self,
        guest: OrtSession,
        step: float = 0.0,
        agreement: float = USUAL,
        rows_cost: RowsCost = usual_cost,
        own: Callable[[], OwnCaches] | None = None,
    ) -> None:
        """`guest`: made by `OrtSession.sibling(target)`; it serves all sequences of the batch.
        `own` opens the engine on caches of its own; None: on new ones."""
        self.agreement, self.rows_cost = agreement, rows_cost
        self._guest, self.step, self.capacity = guest, step, guest.capacity
        self._own = own

    @property
    def facts(self) -> DecoderFacts:
        return self._guest.facts

    def alone(self) -> OwnCaches:
        if self._own is not None:
            return self._own()
        return OwnCaches(self._guest.sibling(), self.step, self.agreement, self.rows_cost)

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        return self._guest.follow(row, length, tokens, asked)


class NestedCaches(SharedCaches):
    """A sub-model of a draft engine, over the caches that the engine has of its own for one
    sequence: other weights than the target's."""

    shares = False

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        return super().follow(0, length, tokens, asked)


def _last(scores: Scores, rows: int) -> Scores:
    def cut(part: npt.NDArray[Any] | None) -> Any:
        return None if part is None else part[:, -rows:]

    topk, values = cut(scores.topk_ids), cut(scores.topk_logits)
    return Scores(cut(scores.argmax), cut(scores.logits), topk, values, cut(scores.top_gap))
