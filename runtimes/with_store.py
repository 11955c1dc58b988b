"""What drafters share that look up in a store, which is free, and pay for the drafts of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from graftline.runtimes.drafter import Drafter, PaidDrafter
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

Model = TypeVar("Model", bound=PaidDrafter)


class WithStore(Generic[Model]):
    """A `PaidDrafter` whose proposals are the store's, and whose drafts are the model's. What these
    are worth is learned by the length of the store's match: where the store is sure, the model has
    to beat it."""

    signal: int
    _store: Drafter
    _model: Model

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
