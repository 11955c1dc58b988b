"""What drafters that ask draft heads have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.chances.certainty import CLASSES, certainty
from graftline.runtimes.chances.head_chances import FIRST, HeadChances
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import Draft
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.head_reader import Heads, Reading
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.learned import Accuracies, by_rank
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

FADES = 0.75
"""What each further head has of the chances of the one before."""


def believed(heads: int, width: int) -> Accuracies:
    """[heads][ranks]: chances of heads of which nothing is known."""
    ranks = [*FIRST, *[FIRST[-1]] * width][:width]
    return [[share * FADES**depth for share in ranks] for depth in range(heads)]


@cache
def _reach(heads: int, width: int, rows: int) -> tuple[float, ...]:
    """Chances of the rows of the best tree of such heads."""
    return by_rank(believed(heads, width), rows, heads).chances


@dataclass
class HeadDraft:
    """A drafter whose drafts come from the state that chose the last token. How often candidates
    come true is learned by head and rank, from all sequences."""

    branching: ClassVar[bool] = True
    name: ClassVar[str] = ""
    """In the table of drafters."""
    sequential: ClassVar[bool] = False
    """Whether its heads read tokens too."""
    rows: int = 32
    signal: int = field(default=0, init=False)
    reads: float = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise GraftlineError(f"{self.name}: rows={self.rows} is not valid; use at least 2")

    def open(self, resources: Resources) -> Heads:
        """The heads, and what is to be learned of them. Raises GraftlineError for a bundle without
        any, or with others than it drafts with."""
        heads = None if resources.head is None else resources.head()
        if heads is None:
            raise missing(self.name, "head")
        if isinstance(heads, FeatureEngine):
            raise GraftlineError(
                f"{self.name} cannot draft with the head of this bundle; use the recipe it was "
                "built with"
            )
        if heads.sequential != self.sequential:
            other = "hydra" if heads.sequential else "medusa"
            raise GraftlineError(
                f"{self.name} cannot draft with the heads of this bundle; use the recipe {other}"
            )
        self.chances = HeadChances(heads.heads, heads.width)
        self._hoped = _reach(heads.heads, heads.width, self.rows)
        self._milliseconds = heads.milliseconds
        return heads

    def take(self, other: HeadDraft, reading: Reading) -> None:
        """Know what another sequence's drafter knows, and begin with nothing read."""
        self.chances, self._hoped = other.chances, other._hoped
        self._milliseconds = other._milliseconds
        self.reading, self.last, self._class = reading, 0, 0

    def start(self, context: Sequence[int]) -> None:
        self.reading.forget()
        self.last, self._class, self.reads = int(context[-1]), 0, 0

    def propose(self, budget: int) -> Tree:
        """The root: the heads are asked only when it pays."""
        self.signal = 0
        return Tree.chain((self.last,))

    def draft(self, bid: Bid) -> Draft:
        """A tree of at most `bid.rows` rows; ends where another row is not worth its price. Heads
        have calls of their own, in which others may share."""
        yield from ()
        self.signal = self.foresight()
        return self.drafted(bid)

    def drafted(self, bid: Bid) -> Tree:
        """What the heads say behind the last token; `reads` are the calls that it took."""
        raise NotImplementedError

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        fresh, last = verdict.tokens(tree), verdict.path[-1]
        self.learn(fresh)
        self.last, self._class = fresh[-1], certainty(scores, row, last)
        self.reading.note(scores, row, last, self.last)

    def learn(self, fresh: Sequence[int]) -> None:
        """The target chose `fresh` where the last draft began."""
        raise NotImplementedError

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)

    def hope(self, foresight: int) -> Sequence[float]:
        """More behind a token that the target was sure of."""
        sure = (foresight - 1) / (CLASSES - 1) if foresight else 0.5
        return tuple(chance ** (1.25 - 0.5 * sure) for chance in self._hoped)

    def price(self, reads: float) -> float:
        return reads * self._milliseconds

    def share(self, sequences: int) -> float:
        """Each asks on its own."""
        return 1.0

    def debt(self) -> float:
        """None: heads keep nothing of a sequence."""
        return 0.0

    def foresight(self) -> int:
        return self._class
