"""Speculative Jacobi decoding: guesses drawn from what the last pass said of their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.drafters.jacobi import Refill, advance, check_window
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Ints, Tree

_PEAK_CLASSES = 4


@dataclass(frozen=True)
class _Law:
    """A distribution [V] over the vocabulary, and its candidates with their cumulative sum."""

    probs: Doubles
    ids: Ints
    cumulative: Doubles

    def draw(self, generator: np.random.Generator) -> int:
        uniform = generator.random() * self.cumulative[-1]
        place = int(np.searchsorted(self.cumulative, uniform, side="right"))
        return int(self.ids[min(place, len(self.ids) - 1)])


@dataclass
class SpeculativeJacobi:
    """Speculative Jacobi decoding, SJD (arXiv 2410.01699).

    As in `Jacobi` a chain of guesses follows the root, but the guess at a position is drawn from
    q = p(. | the guesses before it, last pass): what the request samples from, cut to `top_k`
    candidates, which cost next to nothing when the graph itself reduces as many. The tree says so
    in its draws, and the rule `rejection` accepts a guess x with probability min(1, p(x) / q(x)),
    p being this pass's distribution, and else draws from the residual. That is exact: given
    everything up to the end of the last pass each q is fixed, and its guess is drawn afresh, also
    where the position was guessed before. So is the signal fixed before the draws: it is the class
    of the largest probability of the first q.

    Positions of which no pass has spoken are refilled, which makes them point masses; for greedy
    requests all guesses are, the best tokens. A request hands over a generator of its own
    (`sample_with`); without one every fork draws from a new stream: were a stream used twice, the
    same drafts would meet several requests, whose outputs would not be independent.
    """

    branching: ClassVar[bool] = False
    rows: int = 9
    top_k: int = 8
    """Most candidates of a draw; 0: as many as the request has."""
    refill: str = "repeat"
    """How the end of the window is filled: copy, repeat or random."""
    seed: int = 0
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_window("speculative-jacobi", self.rows, self.refill)
        if self.top_k < 0:
            raise GraftlineError(f"speculative-jacobi: top_k={self.top_k} is not valid; use >= 0")
        self.sample_with(Sampling(1.0), np.random.default_rng(self.seed))
        self._priors = [
            (1.0, *((0.2 + 0.2 * peak) ** place for place in range(1, self.rows)))
            for peak in range(_PEAK_CLASSES)
        ]
        self.start((0,))

    def fork(self) -> SpeculativeJacobi:
        seed = int(self._generator.integers(1 << 62))
        return SpeculativeJacobi(self.rows, self.top_k, self.refill, seed)

    def sample_with(self, sampling: Sampling, generator: np.random.Generator) -> None:
        """Draw as the request does, from `generator`, which nothing else draws from."""
        few = min(sampling.top_k or self.top_k, self.top_k or sampling.top_k)
        self._sampling = replace(sampling, top_k=few)
        self._generator = generator

    def start(self, context: Sequence[int]) -> None:
        self._refill = Refill(self.refill, self.rows - 1, self.seed)
        self._refill.extend(context)
        self._last = int(context[-1])
        self._window: list[_Law | int | None] = [None] * (self.rows - 1)

    def propose(self, budget: int) -> Tree:
        window = self._window[: min(budget, self.rows) - 1]
        self.signal = _peak_class(window[0]) if window else 0
        guesses = [g.draw(self._generator) if isinstance(g, _Law) else g for g in window]
        chain = Tree.chain(self._refill.fill(self._last, guesses))
        draws = {
            node: Draws(law.probs, (node + 1,))
            for node, law in enumerate(window)
            if isinstance(law, _Law)
        }
        return Tree(chain.tokens, chain.parents, draws=draws) if draws else chain

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        accepted = len(verdict.path) - 1
        fresh = [
            self._said(scores, row, node) if node > accepted else None for node in range(len(tree))
        ]
        self._window = advance(self._window, fresh, accepted, self.rows - 1)
        self._refill.extend(verdict.tokens(tree))
        self._last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[max(signal - 1, 0)]

    def _said(self, scores: Scores, row: int, node: int) -> _Law | int:
        """What a row says of the position after it: a law to draw from, or the best token."""
        if self._sampling.greedy:
            return int(scores.argmax[row, node])
        ids, odds = self._candidates(scores, row, node)
        ids, odds = ids[odds > 0], odds[odds > 0]
        probs = np.zeros(scores.logits.shape[-1])
        probs[ids] = odds
        return _Law(probs, ids, np.cumsum(odds))

    def _candidates(self, scores: Scores, row: int, node: int) -> tuple[Ints, Doubles]:
        """Ids and probabilities of what may be drawn after a row."""
        best, logits = scores.topk_ids, scores.topk_logits
        if best is not None and logits is not None and 0 < self._sampling.top_k <= best.shape[-1]:
            places, odds = self._sampling.distribution(logits[row, node])
            return best[row, node] if places is None else best[row, node, places], odds
        places, odds = self._sampling.distribution(scores.logits[row, node])
        return np.arange(scores.logits.shape[-1]) if places is None else places, odds


def _peak_class(guess: _Law | int | None) -> int:
    """0 for a position of which nothing is known, then by the largest probability."""
    if not isinstance(guess, _Law):
        return 0 if guess is None else _PEAK_CLASSES
    return 1 + min(int(guess.probs[guess.ids].max() * _PEAK_CLASSES), _PEAK_CLASSES - 1)
