"""Copy the input: for outputs that repeat their prompt with small changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import match_class, match_prior
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_CARRIED_ON = 8
"""The signal of an alignment that only continues an earlier one, past a token that differs."""
_TWICE = -1


@dataclass
class InputCopy:
    """Input-guided aggressive decoding (IAD; arXiv 2205.10350), with the prompt as the input.

    The draft is the input from the place the output is aligned with. While the output copies, that
    place moves along. At a token that differs, the output is aligned anew with the place after the
    only occurrence in the input of its last `longest`, ..., 1 tokens; where none of them occurs
    exactly once, with the next place, as if one token had been replaced. The signal is the class of
    the number of tokens copied so far.
    """

    branching: ClassVar[bool] = False
    rows: int = 32
    longest: int = 3
    """Most tokens of output that are looked for to align anew."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or self.longest < 1:
            raise GraftlineError(
                f"input-copy: rows={self.rows}, longest={self.longest} are not valid; "
                "use rows >= 2 and longest >= 1"
            )
        self._priors = [match_prior(signal, self.rows) for signal in range(_CARRIED_ON)]
        self._priors.append(self._priors[1])
        self.start((0,))

    def fork(self) -> InputCopy:
        return InputCopy(self.rows, self.longest)

    def start(self, context: Sequence[int]) -> None:
        source = [int(token) for token in context]
        self._input, self._place, self._copied = source, 0, 0
        self._recent: list[int] = []
        self._last = source[-1]
        self._after: dict[tuple[int, ...], int] = {}
        for size in range(1, self.longest + 1):
            for end in range(size, len(source) + 1):
                gram = tuple(source[end - size : end])
                self._after[gram] = _TWICE if gram in self._after else end

    def propose(self, budget: int) -> Tree:
        place = self._place
        draft = self._input[place : place + min(budget, self.rows) - 1]
        self.signal = 0
        if draft:
            self.signal = match_class(self._copied) if self._copied else _CARRIED_ON
        return Tree.chain([self._last, *draft])

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        for token in verdict.tokens(tree):
            self._align(token)
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]

    def _align(self, token: int) -> None:
        source, place = self._input, self._place
        self._recent = [*self._recent, token][-self.longest :]
        self._place = min(place + 1, len(source))
        if place < len(source) and source[place] == token:
            self._copied += 1
            return
        self._copied = 0
        for size in range(len(self._recent), 0, -1):
            end = self._after.get(tuple(self._recent[-size:]), _TWICE)
            if end != _TWICE:
                self._place, self._copied = end, size
                return
