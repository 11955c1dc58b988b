"""A model that drafts a tree for itself with its first blocks, and verifies with the others alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.chances.head_chances import HeadChances, Said, judged, noted, ranked
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.early_exit import EarlyExit
from graftline.runtimes.drafting import Draft
from graftline.runtimes.levels import Levels
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.dynamic import Growth
from graftline.runtimes.trees.learned import by_rank

if TYPE_CHECKING:
    from graftline.runtimes.draft_seats import TreeSession


@dataclass
class ExitTree(EarlyExit):
    """Self-speculative decoding by early exit (LayerSkip, arXiv 2404.16710), whose draft is a tree
    grown as EAGLE-2's (arXiv 2406.16858) wherever the target scores trees, and a chain elsewhere.

    1. The first blocks read the root, then the nodes of one depth after another, each depth in one
       call: the `width` likeliest of it, as far as together they are worth the call and their rows.
    2. The chance of the likeliest candidate behind a node is what the exit's confidence has come
       to, as of a chain; that of another one its share times what candidates of its rank have.
    3. Whatever was read is verified, in the order in which it was read: a row lies where the blocks
       behind the exit, which go on from its hidden states, and then the cache expect it.

    Nodes are certain, not drawn.
    """

    branching: ClassVar[bool] = True
    name: ClassVar[str] = "exit-tree"
    rows: int = 16
    width: int = 3
    """Most nodes of a depth, and children of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 2 or self.sampled or self.length:
            raise GraftlineError(
                f"{self.name}: width={self.width}, sampled={self.sampled}, length={self.length!r} "
                "do not fit: a tree of certain nodes is 2 wide or more, and the bid says how large "
                "it is; use early-exit for chains"
            )

    def equip(self, resources: Resources) -> None:
        """Open the exit. Raises GraftlineError for a bundle without it, and for one whose blocks
        read chains only or name fewer candidates."""
        super().equip(resources)
        way = self._exit.way
        begins = cast("TreeSession", way.engine.session)  # as those of exits all are
        if not (begins.supports_trees and way.rest.supports_trees):
            raise GraftlineError(
                f"{self.name}: the exit of this bundle reads chains only; build it with a recipe "
                "that drafts trees, as layer-skip-tree, or use layer-skip"
            )
        if self.width > begins.candidates:
            raise GraftlineError(
                f"{self.name}: width={self.width}, and the exit of this bundle names "
                f"{begins.candidates} candidates; use a width of at most {begins.candidates}"
            )
        self.ranks = self._new_ranks()
        self._said: Said = {}

    def _new_ranks(self) -> HeadChances:
        """What candidates of an exit come to, of which nothing is known: of one rank alike at every
        depth, because the same blocks are asked at each."""
        return HeadChances(1, cast("TreeSession", self._exit.way.engine.session).candidates)

    def fork(self) -> Self:
        other = super().fork()
        other.ranks = self.ranks
        return other

    def start(self, context: Sequence[int]) -> None:
        super().start(context)
        self._said = {}

    def draft(self, bid: Bid) -> Draft:
        return self._tree(bid) if bid.branches else super().draft(bid)

    def hope(self, foresight: int) -> Sequence[float]:
        ranks = ranked(self._agreement, self.width)
        return by_rank([ranks], self.rows, self.rows).chances

    def _tree(self, bid: Bid) -> Draft:
        self.signal, self.reads = self.foresight(), 0
        self._drafted, self._declined = [], []
        reader, rows, start = self._exit, self._most(bid), len(self._exit.tokens) - 1
        reader.sit(bid.row)
        reader.states, self._said = {}, {}
        growth = Growth(reader.tokens[-1], self.width)
        levels, nodes, depth = Levels(reader, growth), [0], 0
        while nodes:
            read, self.asked = levels.read(nodes), [growth.path(node) for node in nodes]
            scores = yield read
            self.reads += read.share * reader.engine.rows_cost(len(nodes))
            reader.keep(scores)
            self._expand(growth, nodes, depth, scores)
            nodes, depth = self._worth_reading(growth, bid, rows, len(levels) + 1), depth + 1
        tree = levels.tree()
        if not bid.whole:
            reader.way.begun(bid.row, start, tree, np.stack(reader.states[reader.way.tap]))
        return tree

    def _expand(self, growth: Growth, nodes: Sequence[int], depth: int, scores: Scores) -> None:
        """Give nodes of that depth what the exit says behind them: no candidate is likelier than
        one that the exit prefers."""
        ids, shares = self._exit.shares(scores)
        chances = noted(self._said, self.ranks, depth, self.asked, ids, shares)
        likeliest = list[list[float]]()
        for share, each in zip(shares, chances, strict=True):
            best = self.calibration.of(share[0])
            known = best if share[0] else 0.0  # 0: an id that the target does not have
            likeliest.append([known, *(min(chance, best) for chance in each[1 : self.width])])
        growth.expand(nodes, [row[: self.width] for row in ids], likeliest)

    def _worth_reading(self, growth: Growth, bid: Bid, rows: int, read: int) -> list[int]:
        """Of the last depth the nodes that are read and verified, behind `read` rows of at most
        `rows`: as many as bring most, less the call that reads them and what their rows cost."""
        worth: list[int] = []
        most = expected = 0.0
        for count, node in enumerate(growth.layer[: rows - read], 1):
            expected += growth.value[node] - bid.keep[read + count - 1]
            call = bid.call(read) / bid.share * self._exit.engine.rows_cost(count)
            if expected - call > most:
                most, worth = expected - call, growth.layer[:count]
        return worth

    def _learn(self, fresh: Sequence[int]) -> int:
        accepted = super()._learn(fresh)
        judged(self._said, self.ranks, self.calibration, fresh)
        return accepted
