"""ADED: an adaptive tri-gram matrix, searched with a bonus for what was not tried."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import sqrt
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.ngram_store import (
    PEAK_CLASSES,
    Candidates,
    NgramStore,
    answers,
    peak_class,
    peak_prior,
)
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

_HORIZON = 4
"""Answers over which the matrix averages: it follows the text at hand."""


@dataclass
class Aded:
    """ADED (arXiv 2407.12021). M[u, v] holds the target's candidates after the tokens u v, updated
    by every scored row, rejected ones too; it outlives requests and is shared by a batch. Where the
    paper starts from the tri-grams of a corpus, ours are the prompt's.

    The paper's draft maker is a Monte-Carlo tree search by PUCT; with known probabilities nothing
    has to be simulated, so rows are taken best first by the same score,
    joint(s) P(a|s) (1 + c sqrt(N(s))), where N(s) children of s are rows already. c = 0 follows
    the matrix only (exploitation), a larger c gives wider trees (exploration). The signal is how
    sure the matrix is of its first candidate, and whether it saw the two tokens more than once.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    width: int = 8
    """Candidates kept per pair of tokens."""
    explore: float = 0.3
    """Weight of exploration (c)."""
    text: bool = True
    """Learn the tri-grams of the prompt."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or self.width < 1 or not 0.0 <= self.explore < float("inf"):
            raise GraftlineError(
                f"aded: rows={self.rows}, width={self.width}, explore={self.explore} are not "
                "valid; use rows >= 2, width >= 1 and explore >= 0"
            )
        self._matrix = NgramStore(self.width, _HORIZON)
        self._priors = [peak_prior(signal, self.rows) for signal in range(1 + 2 * PEAK_CLASSES)]
        self._before, self._last = -1, 0

    def fork(self) -> Aded:
        other = Aded(self.rows, self.width, self.explore, self.text)
        other._matrix = self._matrix
        return other

    def start(self, context: Sequence[int]) -> None:
        tokens = [int(token) for token in context]
        self._before, self._last = (-1, *tokens)[-2:]
        if self.text:
            for before, token, following in zip(tokens, tokens[1:], tokens[2:], strict=False):
                self._matrix.learn((before, token), [following], [1.0])

    def propose(self, budget: int) -> Tree:
        first = self._matrix.find((self._before, self._last))
        rows = min(budget, self.rows)
        if first is None or rows < 2:
            self.signal = 0
            return Tree.chain((self._last,))
        self.signal = peak_class(first)
        return self._search(first, rows)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        tokens = tree.token_list
        parents = tree.parent_list
        found = answers("aded", scores, row, range(len(tokens)), self.width)
        learn = self._matrix.learn
        learn((self._before, tokens[0]), found[0][0], found[1][0])
        for node in range(1, len(tokens)):
            learn((tokens[parents[node]], tokens[node]), found[0][node], found[1][node])
        self._before, self._last = tokens[verdict.path[-1]], verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]

    def _search(self, first: Candidates, rows: int) -> Tree:
        tokens, parents, joints = [self._last], [-1], [1.0]
        opened = count()  # the first opened wins among equals
        heap: list[tuple[float, int, int, int, Candidates]] = []

        def open_child(parent: int, children: Candidates, tried: int) -> None:
            joint = joints[parent] * children.probs[tried]
            score = joint * (1.0 + self.explore * sqrt(tried))
            heapq.heappush(heap, (-score, next(opened), parent, tried, children))

        open_child(0, first, 0)
        while heap and len(tokens) < rows:
            _, _, parent, rank, children = heapq.heappop(heap)
            above, token = tokens[parent], children.tokens[rank]
            tokens.append(token)
            parents.append(parent)
            joints.append(joints[parent] * children.probs[rank])
            if rank + 1 < len(children.tokens):
                open_child(parent, children, rank + 1)
            below = self._matrix.find((above, token))
            if below is not None:
                open_child(len(tokens) - 1, below, 0)
        return Tree(np.asarray(tokens, np.int64), np.asarray(parents, np.int64))
