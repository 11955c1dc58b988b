"""Two drafters as one: their trees joined by shared prefixes, the likelier rows first."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.chances.record import Record
from graftline.runtimes.drafter import Drafter, is_paid
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.merge import merge
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_LEAST = 0.01
"""Chance of a row that is worth the time of joining it."""


@dataclass
class Merged:
    """The union of two drafters' trees by longest-prefix matching (RASD, arXiv 2503.03434).

    Rows are ordered by the chance of being accepted that each source showed so far for proposals
    of the class at hand, so the better source leads, text by text. With `prune`, a branch of the
    first source must start with a token that the second proposes too, as RASD prunes what it
    retrieved by its drafter's distribution. The signal is that of the source that promises more.
    """

    branching: ClassVar[bool] = True
    first: str = "suffix"
    """Name of a drafter with point-mass drafts; its other options are the defaults."""
    second: str = "token-recycling"
    rows: int = 32
    prune: bool = False
    """Keep only the branches of `first` that `second` agrees with at the first token."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or self.first == self.second or "merged" in (self.first, self.second):
            raise GraftlineError(
                f"merged: rows={self.rows}, first={self.first!r}, second={self.second!r} do not "
                "fit; use rows >= 2 and two different drafters, none of them merged"
            )
        self._sources: tuple[Drafter, ...] = ()
        self._records = (Record(), Record())

    def equip(self, resources: Resources) -> None:
        """Make the two drafters. Raises GraftlineError for what either lacks."""
        from graftline.runtimes.drafters import make_drafter  # the table that lists this class

        options = {"rows": self.rows}
        names = (self.first, self.second)
        self._sources = tuple(make_drafter(name, options, resources) for name in names)
        for name, source in zip(names, self._sources, strict=True):
            if is_paid(source):
                raise GraftlineError(
                    f"merged: {name} drafts with a model, whose cost cannot be divided among rows;"
                    " name drafters that copy or look up"
                )

    def fork(self) -> Merged:
        other = copy(self)
        other._sources = tuple(source.fork() for source in self._sources)
        first, second = self._records
        other._records = (Record(first.evidence), Record(second.evidence))
        return other

    def start(self, context: Sequence[int]) -> None:
        for source, record in zip(self._sources, self._records, strict=True):
            source.start(context)
            record.begin()

    def propose(self, budget: int) -> Tree:
        rows = min(budget, self.rows)
        trees = [source.propose(self.rows) for source in self._sources]
        parts = zip(self._sources, self._records, trees, strict=True)
        chances = [record.chances(source, tree) for source, record, tree in parts]
        if self.prune:
            _prune(chances[0], trees[0], trees[1])
        promised = [sum(chance) for chance in chances]
        leader = int(promised[1] > promised[0])
        self.signal = 2 * self._sources[leader].signal + leader
        worth = [trim(tree, _worth(c)) for tree, c in zip(trees, chances, strict=True)]
        return merge(worth, chances, rows, _LEAST)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        fresh = verdict.tokens(tree)
        for source, record in zip(self._sources, self._records, strict=True):
            record.learn(fresh)
            source.observe(tree, verdict, scores, row)

    def prior(self, signal: int) -> Sequence[float]:
        return self._sources[signal & 1].prior(signal >> 1)


def _worth(chances: list[float]) -> int:
    """Rows up to the last whose chance is worth joining."""
    rows = len(chances)
    while rows > 1 and chances[rows - 1] < _LEAST:
        rows -= 1
    return rows


def _prune(chances: list[float], retrieved: Tree, drafted: Tree) -> None:
    """Set the chance to 0 of first tokens that were not drafted; without drafts, of none."""
    agreed = set(_first_tokens(drafted).values())
    if agreed:
        for row, token in _first_tokens(retrieved).items():
            if token not in agreed:
                chances[row] = 0.0


def _first_tokens(tree: Tree) -> dict[int, int]:
    """The token of every child of the root, by row."""
    pairs = zip(tree.parent_list, tree.token_list, strict=True)
    return {row: token for row, (parent, token) in enumerate(pairs) if parent == 0}
