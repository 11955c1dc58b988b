"""Token recycling: the target's own top-k candidates, kept per token, searched breadth-first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from graftline.errors import GraftlineError
from graftline.runtimes.packing import with_tokens
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Ints, Tree

_RANK_CHANCE = (0.40, 0.13, 0.07, 0.05, 0.035, 0.025, 0.02, 0.015)
_PEAK_CLASSES = 4


@dataclass(frozen=True)
class Template:
    """A tree of ranks: node i is candidate `ranks[i]` of its parent. `levels` are the nodes of
    each depth after the root; `chances` what a node is first believed to be worth."""

    shape: Tree
    ranks: Ints
    levels: tuple[Ints, ...]
    chances: tuple[float, ...]


@cache
def template(rows: int, width: int) -> Template:
    """The best tree of `rows` rows under the rank chances: nodes in order of their chance."""
    parents, ranks, chances = [-1], [0], [1.0]
    heap = [(-_RANK_CHANCE[rank], 0, rank) for rank in range(width)]
    heapq.heapify(heap)
    while len(parents) < rows:
        chance, parent, rank = heapq.heappop(heap)
        parents.append(parent)
        ranks.append(rank)
        chances.append(-chance)
        node = len(parents) - 1
        for below in range(width):
            heapq.heappush(heap, (chance * _RANK_CHANCE[below], node, below))
    shape = Tree(np.zeros(rows, np.int64), np.asarray(parents, np.int64))
    _ = shape.mask
    deepest = int(shape.depth.max())
    levels = tuple(np.flatnonzero(shape.depth == d) for d in range(1, deepest + 1))
    return Template(shape, np.asarray(ranks, np.int64), levels, tuple(chances))


@dataclass
class Adjacency:
    """For every token its latest candidates, best first, and how sure the target was of the first.

    `candidates` [V + 1, width] int32; -1 is "not seen", and the last row, where -1 leads, holds
    nothing else. `peak` [V + 1]: the softmax share of the best candidate among the kept ones.
    """

    width: int
    candidates: npt.NDArray[np.int32] | None = None
    peak: npt.NDArray[np.float32] | None = None

    def update(self, tokens: Ints, scores: Scores, row: int, rows: Ints | slice) -> None:
        """Store the candidates that the scored `rows` of sequence `row` give their tokens."""
        if scores.topk_ids is None:
            raise GraftlineError(
                "token-recycling reads topk_ids, which this graph does not return; rebuild the "
                f"bundle with the pass reduce-logits{{topk={self.width}}}"
            )
        candidates, peak = self.candidates, self.peak
        if candidates is None or peak is None:
            vocabulary = scores.logits.shape[-1]
            candidates = np.full((vocabulary + 1, self.width), -1, np.int32)
            peak = np.full(vocabulary + 1, 0.5, np.float32)
            self.candidates, self.peak = candidates, peak
        width = min(self.width, scores.topk_ids.shape[-1])
        candidates[tokens, :width] = scores.topk_ids[row, rows, :width]
        if scores.topk_logits is not None:
            best = scores.topk_logits[row, rows, :width]
            peak[tokens] = 1.0 / np.exp(best - best[..., :1]).sum(axis=-1)


@dataclass
class TokenRecycling:
    """Token Recycling (arXiv 2408.08696). The adjacency matrix outlives requests and is shared by
    the sequences of a batch. The tree is the best one of the wanted size; candidates not yet seen
    drop out with their descendants. The signal is how sure the target was after the root token."""

    branching: ClassVar[bool] = True
    rows: int = 32
    width: int = 8
    """Candidates kept per token."""
    signal: int = field(default=0, init=False)
    adjacency: Adjacency | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or not 1 <= self.width <= len(_RANK_CHANCE):
            raise GraftlineError(
                f"token-recycling: rows={self.rows}, width={self.width} do not fit; "
                f"use rows >= 2 and 1 <= width <= {len(_RANK_CHANCE)}"
            )
        self.adjacency = Adjacency(self.width)
        self._last = 0
        chances = template(self.rows, self.width).chances
        scale = [(2 * c + 1) / _PEAK_CLASSES for c in range(_PEAK_CLASSES)]
        self._priors = [chances] + [(1.0, *(c * s for c in chances[1:])) for s in scale]

    def fork(self) -> TokenRecycling:
        other = TokenRecycling(self.rows, self.width)
        other.adjacency = self.adjacency
        return other

    def start(self, context: Sequence[int]) -> None:
        self._last = int(context[-1])

    def propose(self, budget: int) -> Tree:
        store = self.adjacency
        rows = min(budget, self.rows)
        self.signal = 0
        if store is None or store.candidates is None or store.peak is None or rows < 2:
            return Tree.chain((self._last,))
        candidates = store.candidates
        if candidates[self._last, 0] < 0:
            return Tree.chain((self._last,))
        self.signal = 1 + min(int(store.peak[self._last] * _PEAK_CLASSES), _PEAK_CLASSES - 1)
        plan = template(rows, self.width)
        parents = plan.shape.parents
        tokens = np.empty(rows, np.int64)
        tokens[0] = self._last
        for level in plan.levels:
            tokens[level] = candidates[tokens[parents[level]], plan.ranks[level]]
        if tokens.min() >= 0:
            return with_tokens(plan.shape, tokens)
        return _without_gaps(tokens, parents)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        assert self.adjacency is not None
        count = len(tree)
        if count > 1:
            self.adjacency.update(tree.tokens, scores, row, slice(0, count))
        path = np.asarray(verdict.path)  # last, so that accepted rows win over rejected ones
        self.adjacency.update(tree.tokens[path], scores, row, path)
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]


def _without_gaps(tokens: Ints, parents: Ints) -> Tree:
    """The nodes that have a token; a node below a gap is a gap itself."""
    kept = np.flatnonzero(tokens >= 0)
    place = np.cumsum(tokens >= 0) - 1
    above = place[parents[kept]]
    above[0] = -1
    return Tree(tokens[kept], above)
