"""Retrieval from the user's documents: what follows there after the longest match."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import match_class, match_prior
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Ints, Tree

_END = 0
"""Stands between documents; a token is stored as its id plus one."""
_GOES_ON = 0.8
"""Chance that the output follows an occurrence one token further, as believed when ranking."""


class CorpusIndex:
    """All places of the documents, sorted by the text that ends there, read backwards.

    A suffix array of the reversed text: the places where a given string ends are one range of
    `order`, and lengthening the string to the left narrows the range, so one sweep over the end of
    the context finds its longest suffix that occurs. Sorted by prefix doubling (Manber and Myers,
    1993), on the last `longest` tokens only: log2(longest) sorts.
    """

    def __init__(self, documents: Sequence[Ints], longest: int, depth: int) -> None:
        self._longest = longest
        parts = [np.append(document + 1, _END) for document in documents]
        # so that no continuation of `depth` tokens runs past the end, nor a look back at the start
        padding = np.full(max(depth, longest), _END, np.int64)
        text = np.concatenate([*parts, padding])
        order = _sorted_backwards(text, longest)
        self._text = text
        self._token, self._order = text.data, order.data
        self._starts = np.searchsorted(text[order], np.arange(int(text.max()) + 2)).tolist()
        self._places = order
        self._ahead = np.arange(1, depth + 1)

    def match(self, context: Sequence[int]) -> tuple[int, int, int]:
        """Length of the longest suffix of `context` that occurs, up to `longest`, and its range."""
        token, starts = context[-1] + 1, self._starts
        if not 0 < token < len(starts) - 1 or starts[token] == starts[token + 1]:
            return 0, 0, 0
        low, high = starts[token], starts[token + 1]
        text, order = self._token, self._order
        most = min(self._longest, len(context))
        for back in range(1, most):
            token = context[-1 - back] + 1

            def before(place: int, back: int = back) -> int:
                return text[place - back]

            first = bisect_left(order, token, low, high, key=before)
            last = bisect_right(order, token, first, high, key=before)
            if first == last:
                return back, low, high
            low, high = first, last
        return most, low, high

    def continuations(self, low: int, high: int, most: int) -> list[list[int]]:
        """What follows at the places of a range, at most `most` of them, evenly chosen; -1 is the
        end of a document."""
        chosen = min(high - low, most)
        places = self._places[low + np.arange(chosen) * (high - low) // chosen]
        return (self._text[places[:, None] + self._ahead] - 1).tolist()


def _sorted_backwards(text: Ints, longest: int) -> Ints:
    rank, span = text, 1
    order = np.argsort(text, kind="stable")
    while span < longest:
        key = rank * (int(rank.max()) + 1) + np.roll(rank, span)  # the padding is before the start
        order = np.argsort(key, kind="stable")
        rank = np.empty_like(rank)
        rank[order] = np.cumsum(np.diff(key[order], prepend=key[order[0]]) != 0)
        span *= 2
    return order


@dataclass
class Datastore:
    """REST (arXiv 2311.08252): the continuations of the longest suffix of the context that occurs
    in the user's documents, as a trie weighted by how many occurrences agree, best rows first.

    The index is built once and shared. The signal is the class of the length of the match.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    longest: int = 16
    """Longest suffix looked for."""
    shortest: int = 2
    """Shortest match that may propose."""
    occurrences: int = 32
    """Most occurrences whose continuations are read."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or self.occurrences < 1 or not 1 <= self.shortest <= self.longest:
            raise GraftlineError(
                f"datastore: rows={self.rows}, occurrences={self.occurrences}, "
                f"shortest={self.shortest}, longest={self.longest} are not valid; use rows >= 2, "
                "occurrences >= 1 and 1 <= shortest <= longest"
            )
        self._priors = [match_prior(signal, self.rows) for signal in range(8)]
        self._index: CorpusIndex | None = None
        self._context: list[int] = [0]

    def equip(self, resources: Resources) -> None:
        """Index the corpus. Raises GraftlineError when there is none."""
        if resources.corpus is None:
            raise missing("datastore", "corpus")
        self._index = CorpusIndex(resources.corpus, self.longest, self.rows - 1)

    def fork(self) -> Datastore:
        other = Datastore(self.rows, self.longest, self.shortest, self.occurrences)
        other._index = self._index
        return other

    def start(self, context: Sequence[int]) -> None:
        self._context = [int(token) for token in context[-self.longest :]]

    def propose(self, budget: int) -> Tree:
        index, context = self._index, self._context
        rows = min(budget, self.rows)
        self.signal = 0
        if index is None or rows < 2:
            return Tree.chain(context[-1:])
        length, low, high = index.match(context)
        if length < self.shortest:
            return Tree.chain(context[-1:])
        self.signal = match_class(length)
        return _trie(context[-1], index.continuations(low, high, self.occurrences), rows)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self._context = [*self._context, *verdict.tokens(tree)][-self.longest :]

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]


def _trie(root: int, continuations: list[list[int]], rows: int) -> Tree:
    """Best first: the open node that most occurrences pass through becomes the next row, each
    level counting less than the one above; among equals the one opened first."""
    tokens, parents = [root], [-1]
    heap: list[tuple[float, int, int, int, int, list[list[int]]]] = []

    def open_children(row: int, depth: int, passing: list[list[int]]) -> None:
        groups: dict[int, list[list[int]]] = {}
        for continuation in passing:
            token = continuation[depth]
            if token >= 0:
                groups.setdefault(token, []).append(continuation)
        for token, group in groups.items():
            weight = len(group) * _GOES_ON**depth
            heapq.heappush(heap, (-weight, next(opened), depth, row, token, group))

    opened = count()
    deepest = len(continuations[0])
    open_children(0, 0, continuations)
    while heap and len(tokens) < rows:
        _, _, depth, parent, token, group = heapq.heappop(heap)
        tokens.append(token)
        parents.append(parent)
        if depth + 1 < deepest:
            open_children(len(tokens) - 1, depth + 1, group)
    return Tree(np.asarray(tokens, np.int64), np.asarray(parents, np.int64))
