"""A store where it knows how the text goes on, a draft model elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.drafter import Bid, Drafter
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafters.hierarchical_draft import HierarchicalDraft
from graftline.runtimes.drafters.prompt_lookup import PromptLookup
from graftline.runtimes.drafters.suffix import Suffix
from graftline.runtimes.drafting import Draft
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

STORES: dict[str, type[Suffix] | type[PromptLookup]] = {
    "suffix": Suffix,
    "prompt-lookup": PromptLookup,
}
"""Stores whose signal is the class of the length of a match."""


@dataclass
class Cascade:
    """Cascade speculative drafting (arXiv 2312.11462) as a choice made anew at every step: the
    store's proposal, which is free, or a draft of the model, which is paid for, whichever promises
    more tokens per millisecond. What the model's drafts are worth is learned by the length of the
    store's match: where the store is sure, the model has to beat it. The model in turn is drafted
    for by the text's n-grams (the paper's vertical cascade), unless it has a length policy.
    """

    branching: ClassVar[bool] = False
    rows: int = 32
    """Most rows of the store's proposal."""
    store: str = "suffix"
    model_rows: int = 12
    """Most rows of the model's draft."""
    length: str = ""
    """The model's draft-length policy; empty: the bid's."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.store not in STORES:
            raise GraftlineError(f"cascade: no store '{self.store}'{nearest(self.store, STORES)}")
        rows, length = self.model_rows, self.length
        self._model = DraftModel(rows, length) if length else HierarchicalDraft(rows)
        self._store: Drafter = STORES[self.store](self.rows)

    def equip(self, resources: Resources) -> None:
        """Open the draft engine. Raises GraftlineError for a bundle without one."""
        self._model.equip(resources)

    def fork(self) -> Cascade:
        other = Cascade(self.rows, self.store, self.model_rows, self.length)
        other._model, other._store = self._model.fork(), self._store.fork()
        return other

    @property
    def reads(self) -> float:
        """Calls of the model in the last draft."""
        return self._model.reads

    def start(self, context: Sequence[int]) -> None:
        self._model.start(context)
        self._store.start(context)

    def propose(self, budget: int) -> Tree:
        tree = self._store.propose(budget)
        self.signal = self._store.signal
        return tree

    def draft(self, bid: Bid) -> Draft:
        return self._model.draft(bid)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self._model.observe(tree, verdict, scores, row)
        self._store.observe(tree, verdict, scores, row)

    def prior(self, signal: int) -> Sequence[float]:
        return self._store.prior(signal)

    def hope(self, foresight: int) -> Sequence[float]:
        return self._model.hope(foresight)

    def price(self, reads: float) -> float:
        return self._model.price(reads)

    def share(self, sequences: int) -> float:
        return self._model.share(sequences)

    def debt(self) -> float:
        return self._model.debt()

    def foresight(self) -> int:
        """No match, a short one, a long one; and whether the target was sure of its last token."""
        match = min((self.signal + 2) // 3, 2)
        return 2 * match + (self._model.foresight() > 3)
