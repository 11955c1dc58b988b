"""A model that drafts for itself with its first blocks, and verifies with the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graftline.exits import ADAPTER, EXIT
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.control.costs import NEAR
from graftline.runtimes.draft_reader import Guess, Reader, drawn
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import Draft
from graftline.runtimes.exits import Exit
from graftline.runtimes.lengths import make_length
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Scores, Tap
from graftline.tree import Draws, Tree


class ExitReader(Reader):
    """As `Reader`, and it keeps the hidden states of what it reads for the blocks behind."""

    def __init__(self, way: Exit, vocabulary: int = 0) -> None:
        super().__init__(way.engine, vocabulary)
        way.rest_cost(1, NEAR, 1)  # what is measured once is measured now, not within a text
        self.way = way
        self.states: dict[Tap, list[Floats]] = {}
        """[H] of each row of the draft under way, behind each exit that its blocks pass."""

    def turn_to(self, way: Exit) -> None:
        """Read with another exit of the same target, on the same caches."""
        self.way, self.engine, self.milliseconds = way, way.engine, way.engine.step

    def keep(self, scores: Scores) -> None:
        """Keep the hidden states of all rows of these scores."""
        for tap, states in scores.taps.items():
            self.states.setdefault(tap, []).extend(states[0].copy())

    def guess(
        self, scores: Scores, place: int, sampling: Sampling, exact: bool = False
    ) -> Guess:
        self.note(scores, place)
        return super().guess(scores, place, sampling, exact)

    def note(self, scores: Scores, place: int, row: int | None = None) -> None:
        """Keep the hidden states of one of these scores: those of the draft's next row, or of that
        `row` once more."""
        for tap, states in scores.taps.items():
            known = self.states.setdefault(tap, [])
            known[len(known) if row is None else row :] = [states[0, place].copy()]


@dataclass
class EarlyExit(DraftModel):
    """Self-speculative decoding by early exit (LayerSkip, arXiv 2404.16710): the target's first
    blocks, its final norm and its head write ahead on the target's own caches, and only the blocks
    behind those verify, from the hidden states that the draft has left of every row, the root's
    included.

    Every row of a draft has thus been read, and what is decided at each is whether another token
    is worth reading and verifying: by the bid, which knows what the blocks left cost, or by a
    `length` policy (`confidence{...}`: a fixed threshold).
    """

    name: ClassVar[str] = "early-exit"
    need: ClassVar[str] = EXIT
    """What it drafts with: an exit, or an exit's adapter."""
    exit: int = 0
    """After how many blocks, of a bundle with several exits; 0: the first of them."""
    ways: Sequence[Exit] = field(default=(), init=False, repr=False)

    def equip(self, resources: Resources) -> None:
        """Open the exit. Raises GraftlineError for a bundle without it."""
        if resources.exits is None:
            raise missing(self.name, self.need)
        adapted = self.need == ADAPTER
        self._resources = resources
        self.ways = [way for way in resources.exits() if way.adapted == adapted]
        way = next((w for w in self.ways if self.exit in (0, w.blocks)), None)
        if way is None:
            who = f"{self.name}: exit={self.exit}" if self.exit else self.name
            raise missing(who, self.need)
        self._reader = self._exit = ExitReader(way, resources.vocabulary)
        engine = way.engine
        self.calibration, self._agreement = Calibration(engine.agreement), engine.agreement
        if self.length:
            self.policy = make_length(self.length, resources.tuned)

    def draft(self, bid: Bid) -> Draft:
        self.signal, self.reads = self.foresight(), 0
        reader, chance, start = self._exit, 1.0, len(self._exit.tokens) - 1
        reader.sit(bid.row)
        reader.states, self._drafted, self._declined = {}, [], []
        ahead, promised = list[int](), [1.0]
        draws: dict[int, Draws] = {}
        most = self._most(bid)
        while True:
            guess, odds = yield from self._answer(ahead, chance, bid)
            chance, depth = chance * odds, len(ahead) + 1
            paying = depth < most and self._pays(chance, bid, depth)
            if depth >= most or not self._worth(guess, len(ahead), paying):
                self._decline(guess)
                break
            token = guess.best
            if guess.probs is not None:
                token = drawn(guess.probs, self._generator)
                draws[depth - 1] = Draws(guess.probs, (depth,))
            ahead.append(token)
            promised.append(odds)
            self._drafted.append((token, guess.confidence))
        chain = Tree.chain([reader.tokens[-1], *ahead])
        if not bid.whole:
            reader.way.begun(bid.row, start, chain, np.stack(reader.states[reader.way.tap]))
        return Tree(chain.tokens, chain.parents, np.asarray(promised, np.float32), draws or None)

    def _pays(self, chance: float, bid: Bid, depth: int) -> bool:
        """Whether a row of that chance is worth reading and verifying."""
        return chance >= bid.draft[depth]

    def _most(self, bid: Bid) -> int:
        """Most rows of a draft for that bid, the root included."""
        return min(bid.rows, self.rows, self._exit.room + 1)

    def reads_for(self, rows: int) -> float:
        """Calls of a draft of so many rows behind the root."""
        return rows + 1.0

    def rest_cost(self, rows: int, past: float, batch: int) -> float:
        """Milliseconds of verifying so many rows in all, of `batch` sequences."""
        return self._exit.way.rest_cost(rows, past, batch)
