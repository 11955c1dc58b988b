"""EAGLE: a head of the target's own hidden states writes ahead, a chain or a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.chances.certainty import certainty
from graftline.runtimes.chances.head_chances import FIRST, HeadChances, Said, judged, noted
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import Draft
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.feature_reader import FeatureLevels, FeatureReader
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.layered_reader import LayeredReader
from graftline.runtimes.lengths import make_length
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Floats, Scores, Tap, tapped
from graftline.runtimes.trees.dynamic import Growth
from graftline.runtimes.trees.learned import by_rank
from graftline.runtimes.trees.template import Template
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass
class Eagle(DraftModel):
    """EAGLE (arXiv 2401.15077): as a draft model, but what it reads is every token with the hidden
    state that the target has before it. Behind what is chosen it goes on with states of its own.

    With a `width` of 1 it drafts a chain. How far is the bid's, or a `length` policy's; `sampled`
    drafts are drawn. A larger `width` drafts EAGLE-2's tree (arXiv 2406.16858) wherever the target
    scores trees, and a chain elsewhere: of each depth the `width` likeliest nodes are read in one
    call, and each gets its `width` likeliest candidates; of all nodes the likeliest are scored. The
    chance of a node is the head's probability times what such candidates, of their depth and rank,
    have come to. A node is read where its best child is likely enough for a row of the target's
    step, and a depth where its nodes together are worth the call. Children are certain, not drawn.
    """

    branching: ClassVar[bool] = True
    name: ClassVar[str] = "eagle"
    reads_as: ClassVar[type[FeatureReader]] = FeatureReader
    width: int = 1
    """Nodes of a depth that go on, and children of each; 1: a chain."""
    depth: int = 8
    """Most calls for a tree."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.depth < 1:
            raise GraftlineError(
                f"eagle: width={self.width}, depth={self.depth} are not valid; use at least 1"
            )
        if self.width > 1 and (self.sampled or self.length):
            raise GraftlineError(
                "eagle: trees are of certain nodes, and the bid says how large they are; leave out "
                "`sampled` and `length`, or use width=1"
            )

    def equip(self, resources: Resources) -> None:
        """Open the head. Raises GraftlineError for a bundle without one, or with one that reads no
        trees where the drafter is to draft them."""
        head = None if resources.head is None else resources.head()
        if not isinstance(head, FeatureEngine):
            raise missing(self.name, "head")
        if self.width > 1:
            _check_trees(head, self.width)
        self._resources = resources
        kind = LayeredReader if head.deeper else self.reads_as
        self._reader = self._features = kind(head, resources.vocabulary)
        self.calibration, self._agreement = Calibration(head.agreement), head.agreement
        self.ranks = HeadChances(self.depth, self.width)
        self._said: Said = {}
        if self.length:
            self.policy = make_length(self.length, resources.tuned)

    def fork(self) -> Self:
        other = super().fork()
        other.ranks = self.ranks
        return other

    @property
    def head_text(self) -> HeadText:
        """What its head reads of a text of which one token was chosen: for a fused step."""
        return self._features.text

    @property
    def plan(self) -> Template:
        """What a fused step drafts: a chain of at most `depth` tokens, whatever the `width`."""
        drafts = range(1, min(self.rows, self.depth + 1))
        return Template.of({(0,) * depth: self._agreement**depth for depth in drafts})

    def see(self, start: int, states: Mapping[Tap, Floats]) -> None:
        """The target has read prompt tokens from `start` on: their hidden states, each [N, H]."""
        self._features.see(start, tapped(states, self._features.reads))

    def start(self, context: Sequence[int]) -> None:
        super().start(context)
        self._said = {}

    def draft(self, bid: Bid) -> Draft:
        if self.width == 1 or not bid.branches:
            return super().draft(bid)
        return self._tree(bid)

    def hope(self, foresight: int) -> Sequence[float]:
        if self.width == 1:
            return super().hope(foresight)
        ranks = (self._agreement, *FIRST[1 : self.width])
        return by_rank([ranks], self.rows, self.depth).chances

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        features = scores.tap(self._features.reads)
        fresh = verdict.tokens(tree)
        accepted = self._learn(fresh)
        if self.policy is not None and self._drafted:
            self.policy.observe(accepted, len(self._drafted))
        self._drafted = []
        judged(self._said, self.ranks, self.calibration, fresh)
        self._features.choose(fresh, features[row, list(verdict.path)])
        self._class = certainty(scores, row, verdict.path[-1])

    def _tree(self, bid: Bid) -> Draft:
        """A tree of at most `bid.rows` rows, whose first depth is paid for."""
        self.signal, self.reads = self.foresight(), 0
        self._drafted, self._said = [], {}
        reader, rows = self._features, min(bid.rows, self.rows)
        reader.sit(bid.row)
        growth = Growth(reader.tokens[-1], self.width)
        levels = FeatureLevels(reader, growth)
        nodes = [0] if rows > 1 and reader.room > 0 else []
        for depth in range(self.depth):
            if not nodes:
                break
            read, self.asked = levels.read(nodes), [growth.path(node) for node in nodes]
            scores = yield read
            self.reads += reader.engine.rows_cost(len(nodes)) if depth else read.share
            levels.note(scores)
            self._expand(growth, nodes, depth, scores)
            nodes = self._worth_reading(growth, bid, rows)[: reader.room - len(levels)]
        return growth.best(rows, bid.keep)

    def _expand(
        self, growth: Growth, nodes: Sequence[int], depth: int, scores: Scores
    ) -> None:
        """Give nodes of that depth what the head says behind them."""
        ids, probs = self._features.candidates(scores, self.width)
        each = self.asked, ids.tolist(), probs.tolist()
        chances = noted(self._said, self.ranks, depth, *each)
        growth.expand(nodes, each[1], chances)

    def _worth_reading(self, growth: Growth, bid: Bid, rows: int) -> list[int]:
        """Of the last depth the nodes that the head is asked about. No child is above its parent,
        so where `rows` nodes are no less likely than one, none of its children will be scored."""
        ranked = np.sort(growth.value)
        call, usual = bid.call(1) / bid.share, self.calibration.usual
        expected = most = 0.0
        worth: list[int] = []
        for count, node in enumerate(growth.layer, 1):
            chance = growth.value[node] * usual
            before, place = len(ranked) - np.searchsorted(ranked, [growth.value[node], chance])
            if before >= rows:
                break
            expected += max(chance - bid.keep[min(place, rows - 1)], 0.0)
            gain = expected - call * self._reader.engine.rows_cost(count)
            if gain > most:
                most, worth = gain, growth.layer[:count]
        return worth


def _check_trees(head: FeatureEngine, width: int) -> None:
    """Raise GraftlineError unless the head reads trees, and names that many candidates."""
    session = head.head
    if not session.supports_trees:
        raise GraftlineError(
            f"eagle: width={width} drafts trees, and the head of this bundle reads chains only; "
            "rebuild the bundle, or use the recipe eagle"
        )
    if width > session.candidates:
        raise GraftlineError(
            f"eagle: width={width}, and the head of this bundle names {session.candidates} "
            f"candidates; use a width of at most {session.candidates}"
        )
