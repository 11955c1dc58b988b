"""Medusa: a tree of what parallel heads say of the next tokens, from one hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graftline.runtimes.chances.head_chances import FIRST
from graftline.runtimes.drafter import Bid
from graftline.runtimes.head_draft import HeadDraft, believed
from graftline.runtimes.head_reader import HeadReader
from graftline.runtimes.resources import Resources
from graftline.runtimes.trees.learned import by_rank
from graftline.runtimes.trees.parallel import parallel_tree, planned_tree
from graftline.runtimes.trees.static import static
from graftline.runtimes.trees.template import Template
from graftline.tree import Tree


@dataclass
class Medusa(HeadDraft):
    """Medusa (arXiv 2401.10774): behind the last token, which head i of the state that chose it
    knows nothing of, stand at depth i + 1 the candidates of head i. They do not depend on one
    another, so a node's chance is the product of its path's; the rows with the largest are drafted.

    One call of the heads answers for all sequences of a batch that wait for one. Candidates are
    point masses.
    """

    name: ClassVar[str] = "medusa"
    tree: str = ""
    """A published tree by name, as `medusa-mc-sim-7b-63`, less what the heads do not give; empty:
    the best tree under the chances of this step."""

    def equip(self, resources: Resources) -> None:
        """Open the heads. Raises GraftlineError for a bundle without any."""
        heads = self.open(resources)
        self._reader = HeadReader(heads)
        self._plan = _shape(self.tree, heads.heads, heads.width) if self.tree else None
        self.take(self, self._reader.join())

    @property
    def plan(self) -> Template:
        """The tree of steps that ask nobody: the published one, or the best under what is believed
        of heads of which nothing is known."""
        if self._plan is not None:
            return self._plan.first(self.rows)
        heads = self._reader.heads
        return by_rank(believed(heads.heads, heads.width), self.rows, heads.heads)

    def fork(self) -> Medusa:
        other = Medusa(self.rows, self.tree)
        other._reader, other._plan = self._reader, self._plan
        other.take(self, self._reader.join())
        return other

    def drafted(self, bid: Bid) -> Tree:
        rows = min(bid.rows, self.rows)
        self.reads = int(self._reader.ask(self.reading))
        ids, shares = self.reading.ids, self.reading.shares
        if ids is None or shares is None or rows < 2:
            return Tree.chain((self.last,))
        chances = self.chances.of(shares)
        if self._plan is None:
            return parallel_tree(self.last, ids, chances, rows, bid.keep)
        plan = self._plan.first(rows)
        ranks: list[int] = plan.ranks.tolist()
        return planned_tree(self.last, ids, chances, plan.shape.parent_list, ranks)

    def learn(self, fresh: Sequence[int]) -> None:
        if self.reading.ids is not None and self.reading.shares is not None:
            rows = zip(self.reading.ids, self.reading.shares, fresh, strict=False)
            for head, (ids, shares, token) in enumerate(rows):
                self.chances.record(head, ids, shares, token)

    def share(self, sequences: int) -> float:
        """One call answers for all of them."""
        return 1.0 / sequences

    def price(self, reads: float) -> float:
        """One call makes a whole tree."""
        return super().price(1.0 if reads else 0.0)


def _shape(name: str, heads: int, width: int) -> Template:
    """A published tree, of the depths and ranks that the heads have."""
    known = static(name, believed(heads, len(FIRST))).within(width)
    pairs = zip(known.paths, known.chances, strict=True)
    return Template.of({path: c for path, c in pairs if 0 < len(path) <= heads})
