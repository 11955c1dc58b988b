"""DEL: of several exits, the one to draft with and how far, chosen anew at every round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import ClassVar, Self

import numpy as np

from graftline.exits import EXITS
from graftline.runtimes.chances.budget import Budget
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.chances.head_chances import ranked
from graftline.runtimes.control.costs import NEAR
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.early_exit import EarlyExit
from graftline.runtimes.exits import Exit
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.learned import by_rank
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

WEIGHT, HORIZON = 4.0, 64.0
"""Rows that what was measured on other text is worth, and over which what was seen is forgotten."""
EAGER, LOOKS = 8, 0.01
"""Rounds, the first of all, that are each looked at; and the share of the time that looks may take
from then on: the head that looks costs a quarter of a row's step on a small model."""


@dataclass
class Acceptance:
    """By exit and rank, the share of rows whose candidate of that rank behind it was the target's
    choice, forgotten by and by; for all sequences of a recipe."""

    shares: dict[int, tuple[list[float], float]]
    """By blocks: the shares, and the rows that they are worth."""
    rounds: int = 0
    price: float = inf
    """Milliseconds of a look, the quickest there was."""
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def believed(cls, ways: Sequence[Exit], width: int) -> Acceptance:
        """Of `width` candidates, as measured on held-out text."""
        known = {way.blocks: ranked(way.engine.agreement, width) for way in ways}
        return cls({blocks: ([*shares], WEIGHT) for blocks, shares in known.items()})

    def of(self, blocks: int) -> list[float]:
        """The shares of one exit, the first never quite 1."""
        best, *others = self.shares[blocks][0]
        return [min(best, 0.99), *others]

    def saw(self, blocks: int, right: Sequence[Sequence[bool]]) -> None:
        """Which candidate of an exit, if any, was right at each of some rows."""
        for one in right:
            shares, rows = self.shares[blocks]
            rows = min(rows + 1.0, HORIZON)
            pairs = zip(shares, one, strict=True)
            self.shares[blocks] = [s + (hit - s) / rows for s, hit in pairs], rows

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
    2. With an acceptance a, a chain of n rows behind the root brings (1 - a^(n+1)) / (1 - a)
       tokens. It takes n + 1 calls of the exit's blocks and a verification by the blocks left, each
       by its own table.
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
        self.acceptance = Acceptance.believed(self.ways, self._candidates)
        self._calibrations: Mapping[int, Calibration] = {
            way.blocks: Calibration(way.engine.agreement) for way in self.ways
        }
        self._choose()

    @property
    def _candidates(self) -> int:
        """Most children of a row."""
        return 1

    def fork(self) -> Self:
        other = super().fork()
        other.acceptance, other._calibrations = self.acceptance, self._calibrations
        other._choose()
        return other

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        way, began = self._exit.way, perf_counter()
        if due := self.acceptance.due(way.engine.step + way.rest_cost(1, NEAR, 1)):
            self._look(list(verdict.path), verdict.tokens(tree), scores, row)
        super().observe(tree, verdict, scores, row)
        self._exit.states.clear()
        if due:
            self._choose()
            self.acceptance.looked(1e3 * (perf_counter() - began))

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
        scores = head.shadow(np.concatenate(states))
        named = scores.argmax[..., None] if scores.topk_ids is None else scores.topk_ids
        first = named[0, :, : self._candidates].reshape(len(self.ways), len(path), -1)
        right = first == np.asarray(fresh[: len(path)])[:, None]
        for way, hits in zip(self.ways, right.tolist(), strict=True):
            self.acceptance.saw(way.blocks, hits)

    def _choose(self) -> None:
        """The exit and the length of the next draft."""
        best = [(*self._best_length(way), way) for way in self.ways]
        _, self._length, way = max(best, key=lambda one: one[0])
        self._exit.turn_to(way)
        self._agreement = self.acceptance.of(way.blocks)[0]
        self.calibration = self._calibrations[way.blocks]

    def _best_length(self, way: Exit) -> tuple[float, int]:
        """The most tokens per millisecond that an exit's drafts expect, and the rows behind the
        root of such a draft."""
        tree = by_rank([self.acceptance.of(way.blocks)], self.rows, self.rows)
        levels = Counter[int]()
        tokens = milliseconds = most = 0.0
        length = 1
        for row, (chance, depth) in enumerate(zip(tree.chances, tree.shape.depth, strict=True)):
            cost = way.engine.rows_cost
            known = cost(levels[depth]) if levels[depth] else 0.0
            levels[depth] += 1
            milliseconds += (cost(levels[depth]) - known) * way.engine.step
            tokens += chance
            rate = tokens / (milliseconds + way.rest_cost(row + 1, NEAR, 1))
            if row and rate > most:
                most, length = rate, row
        return most, length
