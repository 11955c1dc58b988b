"""A store where it knows how the text goes on, a draft model elsewhere."""

from __future__ import annotations

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
from graftline.runtimes.with_store import WithStore

STORES: dict[str, type[Suffix] | type[PromptLookup]] = {
    "suffix": Suffix,
    "prompt-lookup": PromptLookup,
}
"""Stores whose signal is the class of the length of a match."""


def make_store(name: str, store: str, rows: int) -> Drafter:
    """The store of that name, for the drafter `name`. Raises GraftlineError for an unknown one."""
    if store not in STORES:
        raise GraftlineError(f"{name}: no store '{store}'{nearest(store, STORES)}")
    return STORES[store](rows)


@dataclass
class Cascade(WithStore[DraftModel]):
    """Cascade speculative drafting (arXiv 2312.11462) as a choice made anew at every step: the
    store's proposal, which is free, or a draft of the model, which is paid for, whichever promises
    more tokens per millisecond. The model in turn is drafted for by the text's n-grams (the paper's
    vertical cascade), unless it has a length policy.
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
        rows, length = self.model_rows, self.length
        self._store = make_store("cascade", self.store, self.rows)
        self._model = DraftModel(rows, length) if length else HierarchicalDraft(rows)

    def equip(self, resources: Resources) -> None:
        """Open the draft engine. Raises GraftlineError for a bundle without one."""
        self._model.equip(resources)

    def fork(self) -> Cascade:
        other = Cascade(self.rows, self.store, self.model_rows, self.length)
        other._model, other._store = self._model.fork(), self._store.fork()
        return other

    def draft(self, bid: Bid) -> Draft:
        return self._model.draft(bid)
