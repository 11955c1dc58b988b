"""A draft model: a second engine that writes ahead, one token at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.chances.calibration import USUAL, Calibration
from graftline.runtimes.chances.certainty import certainty
from graftline.runtimes.draft_engine import DraftEngine, Read
from graftline.runtimes.draft_reader import Guess, Reader, drawn
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import Draft
from graftline.runtimes.lengths import Length, make_length
from graftline.runtimes.options import options_of
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Tree

_GOES_ON = 0.65
"""Chance, as first believed, that a length policy takes one more token."""


@dataclass
class DraftModel:
    """Speculative decoding with a draft model (arXiv 2211.17192, 2302.01318): a chain of the
    draft's best tokens, point masses; or, `sampled`, drawn from its distribution under the
    request's own sampling, with `draws`.

    How far to draft is the bid's: before the draft is asked for a token, the chance of the chain so
    far times the usual acceptance must be worth another call, and before the token is taken (or
    drawn), its own chance must be worth a row of the target's step. A `length` policy decides in
    the bid's place.
    """

    branching: ClassVar[bool] = False
    name: ClassVar[str] = "draft-model"
    """In the table of drafters."""
    rows: int = 12
    length: str = ""
    """A draft-length policy, as `confidence{threshold=0.6}`; empty: the bid's."""
    sampled: bool = False
    seed: int = 0
    """Of the draws, where the request gives no generator."""
    signal: int = field(default=0, init=False)
    reads: float = field(default=0, init=False)
    policy: Length | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.rows <= 64:
            raise GraftlineError(f"{self.name}: rows={self.rows} is not valid; use 2 to 64")
        self.calibration, self._agreement = Calibration(), USUAL
        self._sampling = Sampling(temperature=1.0 if self.sampled else 0.0)
        self._generator = np.random.default_rng(self.seed)
        self._drafted: list[tuple[int, float]] = []
        """Token and confidence of every row of the last draft."""
        self._declined: list[tuple[int, float]] = []
        """The same of the token that came next and was not worth its row, where there is one: what
        the target chooses there tells as much of it."""
        self.asked: Sequence[Sequence[int]] = ()
        """The drafted tokens before each row of the last read."""
        self._class = 0

    def equip(self, resources: Resources) -> None:
        """Open the draft engine. Raises GraftlineError for a bundle without one."""
        self._resources = resources
        engine = self._engine(resources)
        self._reader = Reader(engine, resources.vocabulary)
        self.calibration, self._agreement = Calibration(engine.agreement), engine.agreement
        if self.length:
            self.policy = make_length(self.length, resources.tuned)

    def _engine(self, resources: Resources) -> DraftEngine:
        """The engine that drafts."""
        if resources.draft is None:
            raise missing(self.name, "draft")
        return resources.draft()

    def fork(self) -> Self:
        other = type(self)(**{name: getattr(self, name) for name in options_of(type(self))})
        other.equip(self._resources)
        other.calibration = self.calibration
        other.policy = None if self.policy is None else self.policy.fork()
        other._generator = self._generator.spawn(1)[0]
        return other

    def sample_with(self, sampling: Sampling, generator: np.random.Generator) -> None:
        """Draw as the request does, from a generator of its own: with draws that are the same for
        every request, samples over many seeds would not be the target's."""
        if self.sampled:
            self._sampling, self._generator = sampling, generator

    def start(self, context: Sequence[int]) -> None:
        self._reader.start(context)
        self._drafted, self._declined, self.reads, self._class = [], [], 0, 0

    def propose(self, budget: int) -> Tree:
        """The root: a draft is made only when it is paid for."""
        self.signal = 0
        return Tree.chain(self._reader.tokens[-1:])

    def draft(self, bid: Bid) -> Draft:
        self.signal, self.reads = self.foresight(), 0
        reader, chance = self._reader, 1.0
        reader.sit(bid.row)
        ahead: list[int] = []
        promised = [1.0]
        draws: dict[int, Draws] = {}
        self._drafted, self._declined = [], []
        for depth in range(1, min(bid.rows, self.rows, reader.room + 1)):
            if depth > 1 and not self._promises(chance, bid, depth):
                break
            guess, odds = yield from self._answer(ahead, chance, bid)
            chance *= odds
            if not self._worth(guess, len(ahead), chance >= bid.keep[depth]):
                self._decline(guess)
                break
            token = guess.best
            if guess.probs is not None:
                token = drawn(guess.probs, self._generator)
                draws[depth - 1] = Draws(guess.probs, (depth,))
            ahead.append(token)
            promised.append(odds)
            self._drafted.append((token, guess.confidence))
            if self._complete(ahead):
                break
        chain = Tree.chain([reader.tokens[-1], *ahead])
        return Tree(chain.tokens, chain.parents, np.asarray(promised, np.float32), draws or None)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        fresh = verdict.tokens(tree)
        accepted = self._learn(fresh)
        if self.policy is not None and self._drafted:
            self.policy.observe(accepted, len(self._drafted))
        self._drafted, self._declined = [], []
        self._reader.append(fresh)
        self._class = certainty(scores, row, verdict.path[-1])

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)

    def hope(self, foresight: int) -> Sequence[float]:
        share = self._agreement if self.policy is None else self._agreement * _GOES_ON
        return tuple(share**row for row in range(self.rows))

    def price(self, reads: float) -> float:
        return reads * self._reader.milliseconds

    def share(self, sequences: int) -> float:
        return self._reader.engine.rows_cost(sequences) / sequences

    def debt(self) -> float:
        return self._reader.debt

    def foresight(self) -> int:
        return self._class

    def _promises(self, chance: float, bid: Bid, depth: int) -> bool:
        """Whether the draft is asked for a token after a chain of that chance."""
        return self.policy is not None or chance * self.calibration.usual >= bid.draft[depth]

    def _answer(
        self, ahead: Sequence[int], chance: float, bid: Bid
    ) -> Generator[Read, Scores, tuple[Guess, float]]:
        """What comes after `ahead`, a chain of that chance, and the chance that it is accepted."""
        read, self.asked = self._reader.read(ahead), (ahead,)
        scores = yield read
        self.reads += read.share
        guess = self._reader.guess(scores, 0, self._sampling, self.policy is not None)
        return guess, self.calibration.of(guess.confidence)

    def _worth(self, guess: Guess, drafted: int, paying: bool) -> bool:
        """Whether the next token is taken; decided before it is drawn."""
        if self.policy is not None:
            return guess.known and self.policy.go_on(drafted, guess.confidence, guess.entropy)
        return guess.known and paying

    def _decline(self, guess: Guess) -> None:
        """A token is not taken. Of one that would have been drawn, what the target chooses instead
        does not say whether it would have been accepted."""
        if guess.probs is None:
            self._declined = [(guess.best, guess.confidence)]

    def _learn(self, fresh: Sequence[int]) -> int:
        """Judge the last draft by what the target chose: how many of its tokens were accepted."""
        accepted, guesses = 0, [*self._drafted, *self._declined]
        for (token, confidence), chosen in zip(guesses, fresh, strict=False):
            self.calibration.record(confidence, token == chosen)
            if token != chosen:
                break
            accepted += 1
        return min(accepted, len(self._drafted))

    def _complete(self, ahead: Sequence[int]) -> bool:
        """True when nothing is to be drafted after `ahead`."""
        return False
