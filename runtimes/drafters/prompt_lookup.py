"""Prompt lookup: what followed the last occurrence of the current n-gram, in prompt and output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import match_class, match_prior
from graftline.runtimes.ngram_index import NgramIndex
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
_LONGEST_MATCH = 24


@dataclass
class PromptLookup:
    """Copies from the latest occurrence of the longest indexed n-gram (Saxena, 2023).

    The index is a hash table per n-gram size, extended by one entry each per new token. A
    continuation that runs into the end of the context repeats with its period, so loops are
    drafted whole. The signal is the class of the length of the match.
    """

    branching: ClassVar[bool] = False
    rows: int = 32
    longest: int = 8
    """Longest n-gram indexed."""
    shortest: int = 1
    """Shortest n-gram that may propose."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or not 1 <= self.shortest <= self.longest:
            raise GraftlineError(
                f"prompt-lookup: rows={self.rows}, shortest={self.shortest}, longest={self.longest}"
                " are not valid; use rows >= 2 and 1 <= shortest <= longest"
            )
        sizes = {n for n in _SIZES if self.shortest <= n <= self.longest}
        self._sizes = sorted(sizes | {self.shortest, self.longest}, reverse=True)
        self._priors = [match_prior(signal, self.rows) for signal in range(8)]
        self.start(())

    def fork(self) -> PromptLookup:
        return PromptLookup(self.rows, self.longest, self.shortest)

    def start(self, context: Sequence[int]) -> None:
        self._index = NgramIndex(self._sizes)
        for token in context:
            self._index.append(int(token))

    def propose(self, budget: int) -> Tree:
        context = self._index.tokens
        _, start = self._index.find()
        self.signal = match_class(self._matched(start)) if start else 0
        count = min(budget, self.rows) - 1
        if not start or count < 1:
            return Tree.chain(context[-1:])
        draft = context[start : start + count]
        while len(draft) < count:
            draft += draft[: count - len(draft)]
        return Tree.chain(context[-1:] + draft)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        for token in verdict.tokens(tree):
            self._index.append(token)

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]

    def _matched(self, start: int) -> int:
        """How many tokens before `start` equal the context's end."""
        context = self._index.tokens
        length, most = 0, min(start, _LONGEST_MATCH)
        while length < most and context[start - 1 - length] == context[-1 - length]:
            length += 1
        return length
