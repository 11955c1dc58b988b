"""STAND: n-grams with the target's probabilities, laid out in a fixed tree, drawn if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.drafters.token_recycling import template
from graftline.runtimes.ngram_store import (
    PEAK_CLASSES,
    Candidates,
    NgramStore,
    answers,
    peak_class,
    peak_prior,
)
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Tree

_HORIZON = 1 << 30
"""A plain mean of all answers."""


@dataclass
class Stand:
    """STAND (arXiv 2506.04708). For the last 1, 2, ... tokens the mean of the target's
    probabilities after them, from accepted rows; the longest known n-gram speaks. The store
    outlives requests and is shared by a batch. The tree has the shape that `graftline tune` learned
    (`tuned["tree"]`: a list of parents), else the best one for typical chances by rank; what is not
    known drops out.

    Children are the likeliest candidates; or, `sampled`, drawn without replacement by Gumbel-top-k,
    for rules that make use of the draws: the proposal then has a size known before anything is
    drawn, filled up with point masses, since a size that depends on drawn tokens would tell the
    controller about them. The signal says how sure the store is of the first token, and whether it
    saw the n-gram before.
    """

    branching: ClassVar[bool] = True
    rows: int = 32
    width: int = 8
    """Candidates kept per n-gram."""
    longest: int = 4
    """Length of the longest n-gram, the predicted token included."""
    sampled: bool = False
    """Draw the children instead of taking the likeliest."""
    seed: int = 0
    """Of the draws."""
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or not 1 <= self.width <= 8 or self.longest < 2 or self.seed < 0:
            raise GraftlineError(
                f"stand: rows={self.rows}, width={self.width}, longest={self.longest}, "
                f"seed={self.seed} are not valid; use rows >= 2, 1 <= width <= 8, longest >= 2 and "
                "seed >= 0"
            )
        self._store = NgramStore(self.width, _HORIZON)
        self._priors = [peak_prior(signal, self.rows) for signal in range(1 + 2 * PEAK_CLASSES)]
        self._parents: list[int] = template(self.rows, self.width).shape.parents.tolist()
        self._random = np.random.default_rng(self.seed)
        self._recent: tuple[int, ...] = (0,)
        self._vocabulary = 0

    def equip(self, resources: Resources) -> None:
        """Take the learned tree. Raises GraftlineError when it is not one."""
        if resources.tuned is not None and "tree" in resources.tuned:
            self._parents = _checked(resources.tuned["tree"])[: self.rows]

    def fork(self) -> Stand:
        other = Stand(self.rows, self.width, self.longest, self.sampled, self.seed)
        other._store, other._parents = self._store, self._parents
        other._random = self._random.spawn(1)[0]  # every sequence draws its own
        return other

    def start(self, context: Sequence[int]) -> None:
        self._recent = tuple(int(token) for token in context[1 - self.longest :])

    def propose(self, budget: int) -> Tree:
        first = self._find(self._recent)
        rows = min(budget, len(self._parents))
        if first is None or rows < 2:
            self.signal = 0
            return Tree.chain(self._recent[-1:])
        self.signal = peak_class(first)
        return self._tree(rows)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self._vocabulary = scores.logits.shape[-1]
        tokens, probs = answers("stand", scores, row, verdict.path, self.width)
        recent, most = self._recent, self.longest - 1
        fresh = verdict.tokens(tree)
        for found, shares, token in zip(tokens, probs, fresh, strict=True):
            for size in range(1, len(recent) + 1):
                self._store.learn(recent[-size:], found, shares)
            recent = (*recent, token)[-most:]
        self._recent = recent

    def prior(self, signal: int) -> Sequence[float]:
        return self._priors[signal]

    def _find(self, recent: tuple[int, ...]) -> Candidates | None:
        """The candidates after the longest known end of `recent`."""
        for size in range(len(recent), 0, -1):
            known = self._store.find(recent[-size:])
            if known is not None:
                return known
        return None

    def _tree(self, rows: int) -> Tree:
        tokens, parents, recents = [self._recent[-1]], [-1], [self._recent]
        choices: dict[int, list[int]] = {}
        drawn: dict[int, tuple[Candidates, list[int]]] = {}
        row_of, most = {0: 0}, self.longest - 1  # of a node of the shape
        for node in range(1, len(self._parents)):
            if len(tokens) == rows:
                break
            parent = row_of.get(self._parents[node])
            if parent is None:
                continue
            if parent not in choices:
                known = self._find(recents[parent])
                choices[parent] = self._choice(known)
                if self.sampled and known is not None:
                    drawn[parent] = (known, [])
            if not choices[parent]:
                continue
            row_of[node] = place = len(tokens)
            token = choices[parent].pop()
            tokens.append(token)
            parents.append(parent)
            recents.append((*recents[parent], token)[-most:])
            if self.sampled:
                drawn[parent][1].append(place)
        if not self.sampled:
            return Tree(np.asarray(tokens, np.int64), np.asarray(parents, np.int64))
        while len(tokens) < rows:
            parents.append(len(tokens) - 1)
            tokens.append(tokens[-1])
        draws = {row: self._draws(known, order) for row, (known, order) in drawn.items() if order}
        return Tree(np.asarray(tokens, np.int64), np.asarray(parents, np.int64), draws=draws)

    def _choice(self, known: Candidates | None) -> list[int]:
        """The children's tokens, last first."""
        if known is None:
            return []
        if not self.sampled:
            return known.tokens[::-1]
        with np.errstate(divide="ignore"):  # what has no probability is never drawn
            keys = np.log(known.probs) + self._random.gumbel(size=len(known.probs))
        return [known.tokens[i] for i in np.argsort(keys).tolist() if known.probs[i] > 0.0]

    def _draws(self, known: Candidates, order: list[int]) -> Draws:
        probs = np.zeros(self._vocabulary)
        probs[known.tokens] = np.asarray(known.probs)
        return Draws(probs / probs.sum(), tuple(order))


def _checked(given: Any) -> list[int]:
    """A list of parents that makes a tree."""
    try:
        parents = np.asarray(given, np.int64)
        Tree(np.zeros(len(parents), np.int64), parents)
    except (ValueError, TypeError) as error:
        raise GraftlineError(
            f"stand: the tuned tree is not a list of parents ({error}); run graftline tune again"
        ) from error
    return parents.tolist()
