"""Parallel Prompt Decoding: placeholders in the target's own pass foretell what is drafted next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.chances.head_chances import HeadChances, Told
from graftline.runtimes.chances.rank_rates import RankRates
from graftline.runtimes.head_draft import believed
from graftline.runtimes.head_reader import shares_of
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.parallel import parallel_tree
from graftline.runtimes.trees.placeholders import chain_behind, planted
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

EXPLORE = 0.01
"""Tokens that placeholders may fall short of their cost for every step since the last ones."""
REFRESH, CHANGED = 8, 0.05
"""Steps after which what placeholders are worth is computed again, and by what share the price of a
row may change until then."""
NO_CANDIDATES = (
    "ppd reads the likeliest tokens of every row, which this graph does not name; rebuild the "
    "bundle with the pass reduce-logits{topk=8}"
)


class Beliefs:
    """What all sequences have shown of the placeholders: how far to believe their shares, how often
    each rank is right, and since when nobody has scored any."""

    def __init__(self, depths: int, width: int) -> None:
        self.chances = HeadChances(depths, width)
        self.rates = RankRates(believed(depths, width))
        self.idle, self._asked, self._price = 0, 0, -1.0
        self._worth: list[float] = []

    def worth(self, price: float, rows: int) -> list[float]:
        """Of each placeholder of a chain, where the text ends before it."""
        if self._asked % REFRESH == 0 or abs(price - self._price) > CHANGED * self._price:
            self._worth, self._price = self.rates.worth(price, rows), price
        self._asked += 1
        return self._worth

    def learn(self, depth: int, told: Told, token: int) -> None:
        """A token came where these were foretold."""
        ids, shares = told
        self.chances.record(depth, ids, shares, token)
        self.rates.record(depth, ids, token)


@dataclass
class Ppd:
    """Parallel Prompt Decoding (arXiv 2405.18628): behind nodes of the drafted tree stand chains of
    placeholders, ids behind the vocabulary whose embeddings were trained to foretell: placeholder i
    the token i + 2 places behind its node. Where the text ends, the placeholders behind that node
    name the candidates of the next step's tree, as Medusa's heads do.

    Rows come by what they are expected to bring: text by its chance, placeholders by the tokens
    that their candidates bring the next step less the cost of scoring them, if the text ends there.
    So whoever cuts a proposal weighs this step and the next. How often candidates come true is
    learned by placeholder and rank from all sequences, whether they were scored or not. While no
    placeholder is scored, a try is taken for better by and by, at one hundredth of the time.
    Candidates are point masses.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    width: int = 8
    """Candidates of a placeholder."""
    signal: int = field(default=0, init=False)
    row: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or self.width < 1:
            raise GraftlineError(
                f"ppd: rows={self.rows}, width={self.width} are not valid; use rows >= 2 and width "
                ">= 1"
            )

    def equip(self, resources: Resources) -> None:
        """Raises GraftlineError for a bundle whose graph has no placeholders."""
        if not resources.placeholders:
            raise missing("ppd", "placeholder")
        self._first, self._depths = resources.vocabulary, resources.placeholders
        self._beliefs = Beliefs(self._depths, self.width)
        self.start((0,))

    def fork(self) -> Ppd:
        other = Ppd(self.rows, self.width)
        other._first, other._depths, other._beliefs = self._first, self._depths, self._beliefs
        other.start((0,))
        return other

    def start(self, context: Sequence[int]) -> None:
        self._last, self.signal = int(context[-1]), 0
        self._told: list[Told] = []
        """What the placeholders behind the last node say, by how far ahead it is."""
        self._open: list[tuple[int, list[Told]]] = []
        """What was said and is still followed, each with how far it has come true."""

    def propose(self, budget: int) -> Tree:
        rows, beliefs = min(budget, self.rows), self._beliefs
        text = Tree(np.asarray([self._last]), np.asarray([-1]), np.ones(1, np.float32))
        if self._told:
            ids = [ids for ids, _ in self._told]
            chances = [
                beliefs.chances.of_head(depth, shares)
                for depth, (_, shares) in enumerate(self._told)
            ]
            text = parallel_tree(self._last, ids, chances, rows, [self.row] * rows)
        self.signal = 1 if len(text) > 1 else 2
        tried = EXPLORE * beliefs.idle / self._depths
        return planted(text, beliefs.worth(self.row, self.rows), self._first, rows, tried)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        fresh, last = verdict.tokens(tree), verdict.path[-1]
        self._follow(fresh)
        self._last = fresh[-1]
        scored = max(tree.token_list) >= self._first
        self._beliefs.idle = 0 if scored else self._beliefs.idle + 1
        self._told = self._read(tree, last, scores, row) if scored else []
        if self._told:
            self._open.append((0, self._told))

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)

    def _read(self, tree: Tree, node: int, scores: Scores, row: int) -> list[Told]:
        """What the chain of placeholders behind a node says."""
        if not (chain := chain_behind(tree, node, self._first)):
            return []
        if scores.topk_ids is None or scores.topk_logits is None:
            raise GraftlineError(NO_CANDIDATES)
        if (most := scores.topk_ids.shape[-1]) < self.width:
            raise GraftlineError(
                f"ppd: width={self.width}, and this graph names {most} candidates of a row; use "
                f"width={most}, or rebuild the bundle with reduce-logits{{topk={self.width}}}"
            )
        ids = scores.topk_ids[row, chain, : self.width].tolist()
        shares = shares_of(scores.topk_logits[row, chain, : self.width]).tolist()
        return list(zip(ids, shares, strict=True))

    def _follow(self, fresh: Sequence[int]) -> None:
        """Compare what was foretold with what came."""
        for token in fresh:
            going: list[tuple[int, list[Told]]] = []
            for depth, told in self._open:
                self._beliefs.learn(depth, told[depth], token)
                if token in told[depth][0] and depth + 1 < len(told):
                    going.append((depth + 1, told))
            self._open = going
