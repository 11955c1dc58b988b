"""A draft model as second engine: its caches, its reading of one sequence, and its guesses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graftline.ports import Facts
from graftline.runtimes.acceptance.odds import Odds
from graftline.runtimes.control.calibration import USUAL
from graftline.runtimes.control.host_time import working
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.sampling import Doubles, Sampling
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
    def facts(self) -> Facts:
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
    def facts(self) -> Facts:
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
    def facts(self) -> Facts:
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


@dataclass
class Guess:
    """The draft's next token: its `best`, or one to be drawn from `probs` [V].

    `confidence` is the largest probability; where nobody reads the entropy, it is the largest share
    among the candidates the graph returns. `known`: the target has the best id too.
    """

    best: int
    confidence: float
    entropy: float
    known: bool
    probs: Doubles | None = None
    others: tuple[int, ...] = ()
    """The likeliest ids, where the graph names them."""


def drawn(weights: Doubles, generator: np.random.Generator) -> int:
    """A token drawn in proportion to `weights` [V]."""
    cumulative = np.cumsum(weights)
    place = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
    return min(int(place), int(np.flatnonzero(weights)[-1]))


class Reader:
    """A draft engine's side of one sequence.

    `tokens` is the sequence, the last chosen token included; `read(ahead)` answers what the draft
    thinks after it and some drafted tokens. What the engine has read already is never read again,
    as long as it is still true.
    """

    def __init__(self, engine: DraftEngine, vocabulary: int = 0) -> None:
        self.engine, self._vocabulary = engine, vocabulary
        if not engine.shares:
            engine.rows_cost(1)  # what is measured once is measured now, not within a text
        self.tokens: list[int] = []
        self.milliseconds = engine.step
        """Of reading one token. Measured together with the target's steps, it is not measured again
        while running: only their ratio counts, and a busy machine slows both."""
        self.row = 0
        """The sequence's place in the target's batch."""
        self.spent = 0.0
        """Milliseconds of work inside the engine; whoever reads it sets it back."""
        self._held = 0
        """Slots of the engine that hold what `tokens` and then `_ahead` say."""
        self._ahead: list[int] = []

    def start(self, context: Sequence[int]) -> None:
        """Begin a sequence."""
        self.tokens, self._ahead = list(map(int, context)), []
        self._held = len(self.tokens) - 1 if self.engine.shares else 0

    def append(self, fresh: Sequence[int]) -> None:
        """The target chose `fresh`."""
        same = _common(self._ahead, fresh)
        if same < len(fresh) or self.engine.shares:
            self._held = min(self._held, len(self.tokens) + same)
            self._ahead = []
        else:
            self._ahead = self._ahead[same:]
        self.tokens += fresh
        if self.engine.shares:
            self._held = len(self.tokens) - 1

    @property
    def unread(self) -> int:
        """Tokens of the sequence that the draft has not read yet, the last one aside."""
        return max(0, len(self.tokens) - 1 - self._held)

    @property
    def debt(self) -> float:
        """Milliseconds that reading what is `unread` adds to the next call."""
        unread = self.unread
        return (self.engine.rows_cost(1 + unread) - 1.0) * self.milliseconds if unread else 0.0

    @property
    def room(self) -> int:
        """Tokens that may be drafted before the engine is full."""
        return self.engine.capacity - len(self.tokens)

    def read(self, ahead: Sequence[int]) -> Scores:
        """Scores [1, 1] of what comes after the sequence and `ahead`; valid until the next call."""
        base, start = len(self.tokens), self._start(ahead)
        part = [*self.tokens[start:], *ahead[max(0, start - base) :]]
        scores = self._call(start, part, 1)
        self._held, self._ahead = base + len(ahead), list(ahead)
        return scores

    def fill(self, mask: int, count: int) -> Scores:
        """Scores [1, count] of the sequence's last token and of `count` - 1 masks behind it, from
        one call; valid until the next. The slots of masks are never held, so that whatever is read
        next overwrites them."""
        start = self._start([])
        scores = self._call(start, [*self.tokens[start:], *[mask] * (count - 1)], count)
        self._held, self._ahead = len(self.tokens), []
        return scores

    def verify(self, ahead: Sequence[int], chain: Sequence[int]) -> Scores:
        """Scores [1, 1 + len(chain)] of what comes after the sequence and `ahead`, and after every
        token of `chain` behind it, from one call; valid until the next."""
        base, start = len(self.tokens), self._start(ahead)
        part = [*self.tokens[start:], *ahead[max(0, start - base) :], *chain]
        scores = self._call(start, part, 1 + len(chain))
        self._held = base + len(ahead) + len(chain)
        self._ahead = [*ahead, *chain]
        return scores

    def rows(self, ahead: Sequence[int]) -> int:
        """Rows that `read(ahead)` puts behind the sequence's last token, and that token: what is
        `unread` is not counted."""
        return len(self.tokens) + len(ahead) - max(self._start(ahead), len(self.tokens) - 1)

    def filled(self, ahead: Sequence[int]) -> None:
        """An engine with all blocks of this one, and more, has read the sequence and `ahead` into
        the caches that both use."""
        self._held, self._ahead = len(self.tokens) + len(ahead), list(ahead)

    def overwritten(self, ahead: Sequence[int]) -> None:
        """An engine with only the first blocks of this one has."""
        same = _common(self._ahead, ahead)
        self._held, self._ahead = min(self._held, len(self.tokens) + same), self._ahead[:same]

    def _call(self, start: int, part: Sequence[int], asked: int) -> Scores:
        """The scores of the last `asked` of these rows."""
        began, work = time.perf_counter(), working()
        scores = self.engine.follow(self.row, start, part, asked)
        self.spent += (working() - work) * 1e3
        if not self.engine.step and start:
            self._clock((time.perf_counter() - began) * 1e3 / self.engine.rows_cost(len(part)))
        return scores

    def _start(self, ahead: Sequence[int]) -> int:
        """The first slot that `read(ahead)` writes."""
        known = len(self.tokens) + _common(self._ahead, ahead)
        return min(self._held, known, len(self.tokens) + len(ahead) - 1)

    def guess(self, ahead: Sequence[int], sampling: Sampling, exact: bool = False) -> Guess:
        """What comes next by the draft; with `probs` unless `sampling` is greedy. `exact` asks for
        the confidence and the entropy of the whole distribution."""
        return self.guess_of(self.read(ahead), 0, sampling, exact)

    def guess_of(
        self, scores: Scores, place: int, sampling: Sampling, exact: bool = False
    ) -> Guess:
        """What one row of the draft's scores says comes next."""
        best = int(scores.argmax[0, place])
        width, known = self._width(scores), self.knows(best)
        if sampling.greedy and not exact:
            some = scores.logits if scores.topk_logits is None else scores.topk_logits
            values = some[0, place]
            share = 1.0 / float(np.exp(values - values.max()).sum())
            others = () if scores.topk_ids is None else tuple(scores.topk_ids[0, place].tolist())
            return Guess(best, share, 0.0, known, None, others)
        if sampling.greedy and not sampling.filters:
            odds, probs = Odds.of(scores.logits[0, place, :width]), None
        else:
            law = self.distribution(scores, place, sampling)
            odds, probs = Odds(law, 1.0), None if sampling.greedy else law
        return Guess(best, odds.highest, odds.entropy if exact else 0.0, known, probs)

    def knows(self, token: int) -> bool:
        """Whether the target has that id too."""
        return not self._vocabulary or token < self._vocabulary

    def distribution(self, scores: Scores, place: int, sampling: Sampling) -> Doubles:
        """[V] over the target's ids (a draft's logits may be padded otherwise), of one row, under
        the same sampling, penalties aside: a draft may come from any distribution."""
        width = self._width(scores)
        used = replace(sampling, temperature=sampling.temperature or 1.0, repetition_penalty=1.0)
        ids, probs = used.distribution(scores.logits[0, place, :width])
        dense = np.zeros(width)
        dense[slice(None, len(probs)) if ids is None else ids] = probs
        return dense

    def _width(self, scores: Scores) -> int:
        """Ids that the target has."""
        return self._vocabulary or scores.logits.shape[-1]

    def _clock(self, milliseconds: float) -> None:
        """One interrupted call must not look like a slow model."""
        known = self.milliseconds
        self.milliseconds = (
            0.95 * known + 0.05 * min(milliseconds, 3.0 * known) if known else milliseconds
        )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
