"""Medusa: a tree of what parallel heads say of the next tokens, from one hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.chances.certainty import CLASSES, certainty
from graftline.runtimes.chances.head_chances import HeadChances
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import Draft
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.head_reader import HeadReader
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.learned import by_rank
from graftline.runtimes.trees.parallel import parallel_tree, planned_tree
from graftline.runtimes.trees.static import static
from graftline.runtimes.trees.template import Template
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

FIRST = (0.55, 0.15, 0.07, 0.04, 0.03, 0.02, 0.02, 0.01, 0.01, 0.01)
"""By rank, the chance of a candidate of the first head while nothing is known of it; about what
heads of a published model have (arXiv 2401.10774, figure 4)."""
FADES = 0.75
"""What each further head has of the chances of the one before."""


@dataclass
class Medusa:
    """Medusa (arXiv 2401.10774): behind the last token, which head i of the state that chose it
    knows nothing of, stand at depth i + 1 the candidates of head i. They do not depend on one
    another, so a node's chance is the product of its path's; the rows with the largest are drafted.

    How often each head's candidates come true is learned, by rank, from all sequences. One call of
    the heads answers for all sequences of a batch that wait for one. Candidates are point masses.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    tree: str = ""
    """A published tree by name, as `medusa-mc-sim-7b-63`, less what the heads do not give; empty:
    the best tree under the chances of this step."""
    signal: int = field(default=0, init=False)
    reads: float = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise GraftlineError(f"medusa: rows={self.rows} is not valid; use at least 2")

    def equip(self, resources: Resources) -> None:
        """Open the heads. Raises GraftlineError for a bundle without any."""
        heads = None if resources.head is None else resources.head()
        if heads is None or isinstance(heads, FeatureEngine):
            raise missing("medusa", "head")
        self._reader = HeadReader(heads)
        self._chances = HeadChances(heads.heads, heads.width)
        first = [
            [share * FADES**depth for share in FIRST[: heads.width]] for depth in range(heads.heads)
        ]
        self._believed = by_rank(first, self.rows, heads.heads)
        self._plan = _shape(self.tree, first, heads.width) if self.tree else None
        self._join()

    def fork(self) -> Medusa:
        other = Medusa(self.rows, self.tree)
        other._reader, other._chances = self._reader, self._chances
        other._believed, other._plan = self._believed, self._plan
        other._join()
        return other

    def _join(self) -> None:
        self._reading = self._reader.join()
        self._last, self._class = 0, 0

    def start(self, context: Sequence[int]) -> None:
        self._reading.hidden = self._reading.ids = self._reading.shares = None
        self._last, self._class, self.reads = int(context[-1]), 0, 0

    def propose(self, budget: int) -> Tree:
        """The root: the heads are asked only when it pays."""
        self.signal = 0
        return Tree.chain((self._last,))

    def draft(self, bid: Bid) -> Draft:
        yield from ()  # the heads are asked for all sequences at once
        self.signal, rows = self.foresight(), min(bid.rows, self.rows)
        self.reads = int(self._reader.ask(self._reading))
        ids, shares = self._reading.ids, self._reading.shares
        if ids is None or shares is None or rows < 2:
            return Tree.chain((self._last,))
        chances = self._chances.of(shares)
        if self._plan is None:
            return parallel_tree(self._last, ids, chances, rows, bid.keep)
        plan = self._plan.first(rows)
        ranks: list[int] = plan.ranks.tolist()
        return planned_tree(self._last, ids, chances, plan.shape.parent_list, ranks)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        fresh, reading = verdict.tokens(tree), self._reading
        if reading.ids is not None and reading.shares is not None:
            self._chances.record(reading.ids, reading.shares, fresh)
        self._last, last = fresh[-1], verdict.path[-1]
        self._class = certainty(scores, row, last)
        self._reader.note(reading, scores, row, last)

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)

    def hope(self, foresight: int) -> Sequence[float]:
        """More of a token that the target was sure of; by half of what is left, at most."""
        sure = (foresight - 1) / (CLASSES - 1) if foresight else 0.5
        return tuple(chance ** (1.25 - 0.5 * sure) for chance in self._believed.chances)

    def price(self, reads: float) -> float:
        """One call makes a whole tree."""
        return self._reader.heads.milliseconds if reads else 0.0

    def share(self, sequences: int) -> float:
        """One call answers for all of them."""
        return 1.0 / sequences

    def debt(self) -> float:
        """None: the heads keep nothing of a sequence."""
        return 0.0

    def foresight(self) -> int:
        return self._class


def _shape(name: str, accuracies: Sequence[Sequence[float]], width: int) -> Template:
    """A published tree, of the depths and ranks that the heads have."""
    wide = [[*row, *[row[-1] / 2] * (len(FIRST) - len(row))] for row in accuracies]
    known = static(name, wide).within(width)
    pairs = zip(known.paths, known.chances, strict=True)
    return Template.of({path: c for path, c in pairs if 0 < len(path) <= len(accuracies)})
