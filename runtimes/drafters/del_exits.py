"""DEL: of several exits, the one to draft with and how far, chosen anew at every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import ClassVar, Self

import numpy as np

from graftline.exits import EXITS
from graftline.runtimes.chances.budget import Budget
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.control.costs import NEAR
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.early_exit import EarlyExit
from graftline.runtimes.exits import Exit
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

WEIGHT, HORIZON = 4.0, 64.0
"""Rows that what was measured on other text is worth, and over which what was seen is forgotten."""
EAGER, LOOKS = 8, 0.01
"""Rounds, the first of all, that are each looked at; and the share of the time that looks may take
from then on: the head that looks costs a quarter of a row's step on a small model."""


@dataclass
class Acceptance:
    """By exit, the share of rows whose best token behind it was the target's choice, forgotten by
    and by; for all sequences of a recipe."""

    shares: dict[int, tuple[float, float]]
    """By blocks: the share, and the rows that it is worth."""
    rounds: int = 0
    price: float = inf
    """Milliseconds of a look, the quickest there was."""
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def believed(cls, ways: Sequence[Exit]) -> Acceptance:
        """As measured on held-out text."""
        return cls({way.blocks: (way.engine.agreement, WEIGHT) for way in ways})

    def of(self, blocks: int) -> float:
        """The share of one exit, never quite 1."""
        return min(self.shares[blocks][0], 0.99)

    def saw(self, blocks: int, right: Sequence[bool]) -> None:
        """Whether an exit was right at each of some rows."""
        for one in right:
            share, rows = self.shares[blocks]
            rows = min(rows + 1.0, HORIZON)
            self.shares[blocks] = share + (one - share) / rows, rows

    def due(self, row: float) -> bool:
        """Whether this round is one to look at; counts it. `row`: milliseconds of a row's step, of
        which a share is saved for looks."""
        self.rounds += 1
        self.budget.save(LOOKS * row, most=self.price)
        return self.rounds <= EAGER or self.budget.pays(self.price)

    def looked(self, milliseconds: float) -> None:
        """What a look took."""
        self.price = min(self.price, milliseconds)


@dataclass
class Del(EarlyExit):
    """DEL (arXiv 2504.05598): as early exit, with the exit and the length that expect most tokens
    per millisecond, chosen anew after every round that was looked at: each of the first ones, then
    as often as looking takes a share LOOKS of the time.

    1. Every exit has an acceptance: how often its best token was the target's choice. Of a verified
       row all exits' hidden states are known, drafted with or not: those behind the block it was
       resumed at from the step itself, the others from the draft. One call of the head for all of
       them says what each exit would have drafted.
    2. With an acceptance a, a draft of n rows brings (1 - a^(n+1)) / (1 - a) tokens and takes n + 1
       calls of the exit's blocks and a verification by the blocks left, each by its own table.
    3. Within a draft the confidence of each token decides, as for every draft model, whether it is
       the last; the length is a bound.
    """

    name: ClassVar[str] = "del"
    acceptance: Acceptance = field(
        default_factory=lambda: Acceptance({}), init=False, repr=False
    )

    def equip(self, resources: Resources) -> None:
        super().equip(resources)
        if len(self.ways) < 2 or self.ways[0].head is None:
            raise missing(self.name, EXITS)
        self.acceptance = Acceptance.believed(self.ways)
        self._calibrations: Mapping[int, Calibration] = {
            way.blocks: Calibration(way.engine.agreement) for way in self.ways
        }
        self._choose()

    def fork(self) -> Self:
        other = super().fork()
        other.acceptance, other._calibrations = self.acceptance, self._calibrations
        other._choose()
        return other

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        way, began = self._exit.way, perf_counter()
        if due := self.acceptance.due(way.engine.step + way.rest_cost(1, NEAR, 1)):
            self._look(list(verdict.path), verdict.tokens(tree), scores, row)
            self.acceptance.looked(1e3 * (perf_counter() - began))
        super().observe(tree, verdict, scores, row)
        self._exit.states.clear()
        if due:
            self._choose()

    def _most(self, bid: Bid) -> int:
        return min(super()._most(bid), self._length + 1)

    def _look(self, path: list[int], fresh: Sequence[int], scores: Scores, row: int) -> None:
        """What every exit would have drafted behind the rows of the path, beside `fresh`."""
        head = self.ways[0].head
        assert head is not None, "a drafter that chooses has the head"
        own = self._exit.states
        states = [
            np.stack([own[way.tap][node] for node in path])
            if way.blocks <= self._exit.way.blocks and len(own.get(way.tap, ())) > path[-1]
            else scores.tap(way.tap)[row, path]
            for way in self.ways
        ]
        best = head.shadow(np.concatenate(states)).argmax[0].reshape(len(self.ways), -1)
        for way, tokens in zip(self.ways, best.tolist(), strict=True):
            right = [a == b for a, b in zip(tokens, fresh, strict=False)]
            self.acceptance.saw(way.blocks, right)

    def _choose(self) -> None:
        """The exit and the length of the next draft."""
        sizes = range(1, self.rows)
        self._length, way = max(
            ((n, way) for way in self.ways for n in sizes), key=lambda one: self._rate(*one)
        )
        self._exit.turn_to(way)
        self._agreement = self.acceptance.of(way.blocks)
        self.calibration = self._calibrations[way.blocks]

    def _rate(self, rows: int, way: Exit) -> float:
        """Tokens per millisecond that a draft of so many rows behind the root expects."""
        share = self.acceptance.of(way.blocks)
        tokens = (1.0 - share ** (rows + 1)) / (1.0 - share)
        return tokens / ((rows + 1) * way.engine.step + way.rest_cost(rows + 1, NEAR, 1))
