"""Token recycling: the target's own top-k candidates, kept per token, searched breadth-first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from graftline.errors import GraftlineError
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.learned import by_rank
from graftline.runtimes.trees.packing import with_tokens
from graftline.runtimes.trees.static import static
from graftline.runtimes.trees.template import Template
from graftline.runtimes.verdict import Verdict
from graftline.tree import Ints, Tree

_RANK_CHANCE = (0.40, 0.13, 0.07, 0.05, 0.035, 0.025, 0.02, 0.015, 0.012, 0.01)
_WIDEST = 8
_PEAK_CLASSES = 4


@cache
def template(rows: int, width: int) -> Template:
    """The best tree of `rows` rows under the rank chances."""
    return by_rank([_RANK_CHANCE[:width]], rows)


@dataclass
class Adjacency:
    """For every token its latest candidates, best first, and how sure the target was of the first.

    `candidates` [V + 1, width] int32; -1 is "not seen", and the last row, where -1 leads, holds
    nothing else. `peak` [V + 1]: the softmax share of the best candidate among the kept ones.
    """

    width: int
    candidates: npt.NDArray[np.int32] | None = None
    peak: npt.NDArray[np.float32] | None = None

    def update(
        self, tokens: Ints | int, scores: Scores, row: int, rows: Ints | slice | int
    ) -> None:
        """Store the candidates that the scored `rows` of sequence `row` give their tokens; one
        token and its row may be given as integers."""
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
        if isinstance(rows, int):  # plain integers index faster than arrays of one
            candidates[tokens, :width] = scores.topk_ids[row, rows, :width]
            if scores.topk_logits is not None:
                logits: list[float] = scores.topk_logits[row, rows, :width].tolist()
                peak[tokens] = 1.0 / sum(exp(logit - logits[0]) for logit in logits)
            return
        candidates[tokens, :width] = scores.topk_ids[row, rows, :width]
        if scores.topk_logits is not None:
            best = scores.topk_logits[row, rows, :width]
            peak[tokens] = 1.0 / np.exp(best - best[..., :1]).sum(axis=-1)


@dataclass
class TokenRecycling:
    """Token Recycling (arXiv 2408.08696). The adjacency matrix outlives requests and is shared by
    the sequences of a batch. The tree is the one asked for, else the tuned one, else the best for
    typical chances, cut to the wanted size; candidates not yet seen drop out with their
    descendants. The signal is how sure the target was after the root token."""

    branching: ClassVar[bool] = True
    rows: int = 32
    width: int = 8
    """Candidates kept per token."""
    tree: str = ""
    """A published tree by name, as `medusa-mc-sim-7b-63`, less the ranks that are not kept."""
    signal: int = field(default=0, init=False)
    adjacency: Adjacency | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or not 1 <= self.width <= _WIDEST:
            raise GraftlineError(
                f"token-recycling: rows={self.rows}, width={self.width} are not valid; "
                f"use rows >= 2 and 1 <= width <= {_WIDEST}"
            )
        self.adjacency = Adjacency(self.width)
        self._last = 0
        if self.tree:
            self.shape_by(static(self.tree, [_RANK_CHANCE]).first(self.rows))
        else:
            self.shape_by(template(self.rows, self.width))

    def equip(self, resources: Resources) -> None:
        """Take the tree that was tuned for this machine and these prompts, where there is one."""
        tuned = (resources.tuned or {}).get("token-recycling", {}).get("template")
        if tuned is not None and not self.tree:
            self.shape_by(Template.from_json(tuned).first(self.rows))

    def shape_by(self, plan: Template) -> None:
        """Propose trees of this template, less the candidates that are not kept."""
        plan = plan.within(self.width)
        self.plan = plan
        chances = plan.chances
        scale = [(2 * c + 1) / _PEAK_CLASSES for c in range(_PEAK_CLASSES)]
        self._priors = [chances] + [(1.0, *(min(c * s, 1.0) for c in chances[1:])) for s in scale]

    def fork(self) -> TokenRecycling:
        other = TokenRecycling(self.rows, self.width, self.tree)
        other.adjacency = self.adjacency
        other.plan, other._priors = self.plan, self._priors
        return other

    def start(self, context: Sequence[int]) -> None:
        self._last = int(context[-1])

    def propose(self, budget: int) -> Tree:
        store = self.adjacency
        rows = min(budget, len(self.plan))
        self.signal = 0
        if store is None or store.candidates is None or store.peak is None or rows < 2:
            return Tree.chain((self._last,))
        candidates = store.candidates
        if candidates[self._last, 0] < 0:
            return Tree.chain((self._last,))
        self.signal = 1 + min(int(store.peak[self._last] * _PEAK_CLASSES), _PEAK_CLASSES - 1)
        plan = self.plan.first(rows)
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
        self._last = verdict.next
        count = len(tree)
        if count == 1:
            self.adjacency.update(int(tree.tokens[0]), scores, row, 0)
            return
        self.adjacency.update(tree.tokens, scores, row, slice(0, count))
        path = np.asarray(verdict.path)  # last, so that accepted rows win over rejected ones
        self.adjacency.update(tree.tokens[path], scores, row, path)

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]


def _without_gaps(tokens: Ints, parents: Ints) -> Tree:
    """The nodes that have a token; a node below a gap is a gap itself."""
    kept = np.flatnonzero(tokens >= 0)
    place = np.cumsum(tokens >= 0) - 1
    above = place[parents[kept]]
    above[0] = -1
    return Tree(tokens[kept], above)
