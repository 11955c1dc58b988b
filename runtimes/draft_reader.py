"""A draft engine's reading of one sequence, and its guesses of what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

import numpy as np

from graftline.runtimes.acceptance.odds import Odds
from graftline.runtimes.draft_engine import DraftEngine, LevelRead, Read
from graftline.runtimes.draft_seats import Seat
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.session import Bools, Floats, Ints, Scores


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

    `tokens` is the sequence, the last chosen token included; `read(ahead)` asks what the draft
    thinks after it and some drafted tokens. What the engine has read already is never read again,
    as long as it is still true; whatever is asked for counts as read.
    """

    def __init__(self, engine: DraftEngine, vocabulary: int = 0) -> None:
        self.engine, self._vocabulary = engine, vocabulary
        engine.rows_cost(1)  # what is measured once is measured now, not within a text
        self.tokens: list[int] = []
        self.milliseconds = engine.step
        """Of reading one token. Measured together with the target's steps, it is not measured again
        while running: only their ratio counts, and a busy machine slows both."""
        self.seat, self._seated = Seat(), False
        """Its place in the engine's caches, and whether it has taken one."""
        self._held = 0
        """Slots of the engine that hold what `tokens` and then `_ahead` say."""
        self._ahead: list[int] = []

    def start(self, context: Sequence[int], seat: Seat | None = None) -> None:
        """Begin a sequence; `seat`: that of another reader of the same sequence and caches."""
        if not self._seated:
            self.seat, self._seated = seat or self.engine.seats.take(self), True
        self.tokens, self._ahead = list(map(int, context)), []
        self._held = len(self.tokens) - 1 if self.engine.shares else 0

    def sit(self, row: int) -> None:
        """The sequence is in that row of the target's batch, and about to be drafted for."""
        self.engine.seats.place(self.seat, row)

    def append(self, fresh: Sequence[int]) -> None:
        """The target chose `fresh`."""
        same = common_prefix(self._ahead, fresh)
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

    def read(self, ahead: Sequence[int]) -> Read:
        """To read the sequence and `ahead`, for the scores [1, 1] of what comes after it."""
        base, start = len(self.tokens), self._start(ahead)
        part = [*self.tokens[start:], *ahead[max(0, start - base) :]]
        self._held, self._ahead = base + len(ahead), list(ahead)
        return Read(self.engine, self.seat, start, part)

    def fill(self, mask: int, count: int) -> Read:
        """To read the sequence and `count` - 1 masks behind it in one call, for the scores
        [1, count] of its last token and of those. The slots of masks are never held, so that
        whatever is read next overwrites them."""
        start = self._start([])
        self._held, self._ahead = len(self.tokens), []
        part = [*self.tokens[start:], *[mask] * (count - 1)]
        return Read(self.engine, self.seat, start, part, count)

    def verify(self, ahead: Sequence[int], chain: Sequence[int]) -> Read:
        """To read the sequence, `ahead` and `chain` in one call, for the scores
        [1, 1 + len(chain)] of what comes before and after every token of the chain."""
        base, start = len(self.tokens), self._start(ahead)
        part = [*self.tokens[start:], *ahead[max(0, start - base) :], *chain]
        self._held, self._ahead = base + len(ahead) + len(chain), [*ahead, *chain]
        return Read(self.engine, self.seat, start, part, 1 + len(chain))

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
        same = common_prefix(self._ahead, ahead)
        self._held, self._ahead = min(self._held, len(self.tokens) + same), self._ahead[:same]

    def _start(self, ahead: Sequence[int]) -> int:
        """The first slot that `read(ahead)` writes."""
        known = len(self.tokens) + (common_prefix(self._ahead, ahead) if self._ahead else 0)
        return min(self._held, known, len(self.tokens) + len(ahead) - 1)

    def guess(
        self, scores: Scores, place: int, sampling: Sampling, exact: bool = False
    ) -> Guess:
        """What comes next by one row of the draft's scores; with `probs` unless `sampling` is
        greedy. `exact` asks for the confidence and the entropy of the whole distribution."""
        best = int(scores.argmax[0, place])
        known = self.knows(best)
        if sampling.greedy and not exact:
            some = scores.logits if scores.topk_logits is None else scores.topk_logits
            values = some[0, place]
            share = 1.0 / float(np.exp(values - values.max()).sum())
            others = () if scores.topk_ids is None else tuple(scores.topk_ids[0, place].tolist())
            return Guess(best, share, 0.0, known, None, others)
        if sampling.greedy and not sampling.filters:
            odds, probs = Odds.of(scores.logits[0, place, : self._width(scores)]), None
        else:
            law = self.distribution(scores, place, sampling)
            odds, probs = Odds(law, 1.0), None if sampling.greedy else law
        return Guess(best, odds.highest, odds.entropy if exact else 0.0, known, probs)

    def candidates(self, scores: Scores, count: int) -> tuple[Ints, Floats]:
        """Of every row its `count` likeliest tokens [N, count], best first, and the draft's
        probabilities of them; 0 of ids that the target does not have."""
        assert scores.topk_ids is not None, "a graph that drafts trees names candidates"
        assert scores.topk_logits is not None
        ids, values = scores.topk_ids[0, :, :count], scores.topk_logits[0, :, :count]
        most = values[:, :1]
        total = np.exp(scores.logits[0] - most).sum(axis=-1, keepdims=True)
        probs = np.exp(values - most) / total
        if self._vocabulary:
            probs[ids >= self._vocabulary] = 0.0
        return ids, probs

    def shares(self, scores: Scores) -> tuple[list[list[int]], list[list[float]]]:
        """Of every row the tokens that the graph names, best first, and the share of each among
        them; 0 of ids that the target does not have."""
        assert scores.topk_ids is not None, "a graph that drafts trees names candidates"
        assert scores.topk_logits is not None
        ids: list[list[int]] = scores.topk_ids[0].tolist()
        found: list[list[float]] = scores.topk_logits[0].tolist()
        for row, shares in zip(ids, found, strict=True):  # plain numbers: see `Growth.expand`
            best = shares[0]
            shares[:] = [exp(value - best) for value in shares]
            total = sum(shares)
            shares[:] = [
                share / total if self.knows(token) else 0.0
                for token, share in zip(row, shares, strict=True)
            ]
        return ids, found

    def level(
        self,
        tokens: Sequence[int],
        first: int,
        depth: int,
        seen: Bools,
        features: Floats | None = None,
    ) -> LevelRead:
        """To read N nodes of a tree behind the sequence, all `depth` levels below its root, which
        is the sequence's last token, for the scores [1, N] of what comes after each. `first` nodes
        were read before them, the root's among them; `seen` [N, first - 1 + N] says which of those
        without the root, and of themselves, each sees. `features` [N, H]: what a head reads with
        them."""
        base = len(self.tokens)
        return LevelRead(
            self.engine, self.seat, base + first - 1, tokens, len(tokens), features=features,
            base=base, depth=depth, seen=seen,
        )  # fmt: skip

    def knows(self, token: int) -> bool:
        """Whether the target has that id too."""
        return not self._vocabulary or token < self._vocabulary

    def distribution(self, scores: Scores, place: int, sampling: Sampling) -> Doubles:
        """[V] over the target's ids (a draft's logits may be padded otherwise), of one row, under
        the same sampling, penalties aside: a draft may come from any distribution."""
        width = self._width(scores)
        used = replace(sampling, temperature=sampling.temperature or 1.0)
        ids, probs = used.distribution(scores.logits[0, place, :width])
        dense = np.zeros(width)
        dense[slice(None, len(probs)) if ids is None else ids] = probs
        return dense

    def _width(self, scores: Scores) -> int:
        """Ids that the target has."""
        return self._vocabulary or scores.logits.shape[-1]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
