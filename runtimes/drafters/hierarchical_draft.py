"""A draft model that is drafted for: what was copied from the text, it verifies in one call."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from graftline.errors import GraftlineError
from graftline.runtimes.chances.depth_chances import DepthChances
from graftline.runtimes.draft_engine import Read
from graftline.runtimes.draft_reader import Guess
from graftline.runtimes.drafter import Bid, match_class, match_prior
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import Draft
from graftline.runtimes.ngram_index import NgramIndex
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_SIZES = (6, 4, 3, 2, 1)
"""Of the n-grams that are looked up in the text."""


@dataclass
class HierarchicalDraft(DraftModel):
    """Hierarchical speculation (SpecMQuant, arXiv 2505.22179): drafts for the small model, which
    turns them into the one chain that the target verifies.

    The paper drafts trees with a trained head; here the text's own n-grams propose a chain behind
    what is drafted so far. One call of the draft scores the chain, and its tokens stand as far as
    the draft would have written them, so what it drafts is what it drafts alone, in fewer calls. A
    chain is as long as brings most tokens for the cost of its call, by how often copies after an
    n-gram of that size came true.
    """

    name: ClassVar[str] = "hierarchical-draft"
    ahead: int = 8
    """Most copied tokens in one call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length or not 1 <= self.ahead <= 31:
            raise GraftlineError(
                f"hierarchical-draft: length='{self.length}', ahead={self.ahead} are not valid; "
                "the offer decides how far to draft, and one call verifies 1 to 31 tokens"
            )
        believed = {size: match_prior(match_class(size), 2)[1] for size in _SIZES}
        self._chances = {n: DepthChances(self.ahead, share) for n, share in believed.items()}
        """By the size of the n-gram, how often the draft writes what followed it."""

    def fork(self) -> Self:
        other = super().fork()
        other._chances = self._chances
        return other

    def start(self, context: Sequence[int]) -> None:
        super().start(context)
        self._text = NgramIndex(_SIZES)
        for token in context:
            self._text.append(int(token))

    def draft(self, bid: Bid) -> Draft:
        self._scores: Scores | None = None
        self._chain, self._behind, self._share = list[int](), 0, bid.share
        self._most = min(bid.rows, self.rows, self._reader.room + 1) - 1
        return super().draft(bid)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        super().observe(tree, verdict, scores, row)
        for token in verdict.tokens(tree):
            self._text.append(token)

    def _answer(
        self, ahead: Sequence[int], chance: float, bid: Bid
    ) -> Generator[Read, Scores, tuple[Guess, float]]:
        place = self._place(ahead)
        if place < 0 or self._scores is None:
            size, copied = self._copy(ahead)
            self._chain = copied[: self._worth_verifying(size, copied)]
            self._behind, place = len(ahead), 0
            read = self._reader.verify(ahead, self._chain)
            self._scores = yield read
            self.reads += read.share * self._reader.engine.rows_cost(read.asked)
            if copied:
                own: list[int] = self._scores.argmax[0].tolist()
                tried = copied[: max(1, len(self._chain))]  # the first is known without a row
                same = next((at for at, t in enumerate(tried) if t != own[at]), len(tried))
                self._chances[size].record(len(tried), same)
        guess = self._reader.guess(self._scores, place, self._sampling)
        return guess, self.calibration.of(guess.confidence)

    def _promises(self, chance: float, bid: Bid, depth: int) -> bool:
        if self._place([token for token, _ in self._drafted]) < 0:
            return super()._promises(chance, bid, depth)
        return chance * self.calibration.usual >= bid.keep[depth]  # the call has been made

    def _place(self, ahead: Sequence[int]) -> int:
        """The row of the last call that says what comes after `ahead`; -1: none does."""
        place = len(ahead) - self._behind
        if self._scores is None or not 0 <= place <= len(self._chain):
            return -1
        return place if list(ahead[self._behind :]) == self._chain[:place] else -1

    def _copy(self, ahead: Sequence[int]) -> tuple[int, list[int]]:
        """The size of the longest n-gram known that ends `ahead`, and what followed it, as much as
        still fits behind."""
        size, start = self._text.find(ahead)
        fits = max(0, min(self.ahead, self._most - len(ahead) - 1))
        return size, self._text.tokens[start : start + fits] if size else []

    def _worth_verifying(self, size: int, copied: Sequence[int]) -> int:
        """How many copied tokens bring most drafted tokens for the cost of their call. Others share
        in one without any; one of several rows is for this sequence alone."""
        if not copied:
            return 0
        cost, reach = self._reader.engine.rows_cost, self._chances[size].reach()
        count, best, tokens = 0, 1.0 / self._share, 1.0
        for rows in range(1, len(copied) + 1):
            tokens += reach[rows]
            if tokens / cost(1 + rows) > best:
                count, best = rows, tokens / cost(1 + rows)
        return count
