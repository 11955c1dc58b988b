"""A head's drafts and what a store knows, on one tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from graftline.errors import GraftlineError
from graftline.runtimes.chances.record import Record
from graftline.runtimes.drafter import Bid, PaidDrafter, sees
from graftline.runtimes.drafters.cascade import make_store
from graftline.runtimes.drafting import Draft
from graftline.runtimes.options import options_of
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.merge import merge
from graftline.runtimes.trees.packing import worth_scoring
from graftline.runtimes.verdict import Verdict
from graftline.runtimes.with_store import WithStore
from graftline.tree import Tree


@dataclass
class HeadAndStore(WithStore[PaidDrafter]):
    """RASD's tree (arXiv 2503.03434) with the text's own store: where the head is asked, its tree
    and the store's proposal are one by longest shared prefixes, of which the likeliest rows are
    scored; where it is not worth its price, the store's proposal alone.

    A row of the head counts by what the head says of it, one of the store by what its proposals
    with such a match have come to; a path that both have by the better. Where the target scores
    chains only, the one that promises more is taken. Nothing is drawn.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    store: str = "suffix"
    head: str = "eagle"
    """The drafter that asks the head."""
    width: int = 8
    """Of the head's tree: nodes of a depth that go on, and children of each."""
    depth: int = 6
    """Of the tree of a head that is called again for each depth: most calls."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._store = make_store("head-and-store", self.store, self.rows)
        self._record = Record()
        self._forget()

    def equip(self, resources: Resources) -> None:
        """Open the head. Raises GraftlineError for a bundle without one, and for a drafter that
        asks none, or draws."""
        from graftline.runtimes.drafters import DRAFTERS, make_drafter  # which list this class

        kind = DRAFTERS.get(self.head)
        if kind is not None and not (hasattr(kind, "draft") and kind.branching):
            raise GraftlineError(
                f"head-and-store: {self.head} drafts no trees with a head; use eagle, hydra or "
                "medusa"
            )
        if kind is type(self):
            raise GraftlineError("head-and-store joins a store to a head's own drafter")
        known = {} if kind is None else options_of(kind)
        given = {name: getattr(self, name) for name in ("rows", "width", "depth") if name in known}
        self._ask(cast(PaidDrafter, make_drafter(self.head, given, resources)))

    def fork(self) -> HeadAndStore:
        other = HeadAndStore(self.rows, self.store, self.head, self.width, self.depth)
        other._ask(cast(PaidDrafter, self._model.fork()))
        other._store, other._record = self._store.fork(), Record(self._record.evidence)
        return other

    @property
    def asked(self) -> Sequence[Sequence[int]]:
        """The drafted tokens before each row of the head's last read, where it reads by rows."""
        return getattr(self._model, "asked", ())

    def start(self, context: Sequence[int]) -> None:
        super().start(context)
        self._record.begin()
        self._forget()

    def propose(self, budget: int) -> Tree:
        tree = super().propose(budget)
        self._proposed, self._chances = tree, self._record.chances(self._store, tree)
        return tree

    def draft(self, bid: Bid) -> Draft:
        drafted = yield from self._model.draft(bid)
        stored, chances = self._proposed, self._chances
        if stored is None or len(stored) == 1:
            return drafted
        said = drafted.reach if len(drafted) > 1 else [1.0]
        both = [(drafted, said), (stored, chances)]
        if not bid.branches:
            both = [max(both, key=lambda one: sum(one[1]))]
        trees, known = zip(*both, strict=True)
        return worth_scoring(merge(trees, known, min(bid.rows, self.rows)), bid.keep)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        super().observe(tree, verdict, scores, row)
        self._record.learn(verdict.tokens(tree))
        self._forget()

    def _forget(self) -> None:
        """Nothing is proposed yet."""
        self._proposed: Tree | None = None
        self._chances: Sequence[float] = ()

    def _ask(self, drafter: PaidDrafter) -> None:
        self._model = drafter
        if sees(drafter):  # whoever has `see` is shown every row of a prompt
            self.see = drafter.see
