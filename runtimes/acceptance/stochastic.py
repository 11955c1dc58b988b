"""What the rules that throw dice share: the target's laws at the nodes, and the dice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Draws, Tree

Doubles = npt.NDArray[np.float64]


class Dice:
    """The only source of chance of a rule: replaced by one that takes every branch, it gives the
    rule's exact output distribution."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def coin(self, chance: float) -> bool:
        """True with probability `chance`; no die is thrown when that is 0 or 1."""
        return chance >= 1.0 or (chance > 0.0 and self._generator.random() < chance)

    def draw(self, law: Doubles) -> int:
        """A token from `law` [V], which need not be normalised."""
        cumulative = np.cumsum(law)
        uniform = self._generator.random() * cumulative[-1]
        place = int(np.searchsorted(cumulative, uniform, side="right"))
        return min(place, int(np.flatnonzero(law)[-1]))


class Laws:
    """The target's distribution at the nodes of one scored tree, each computed when asked for."""

    def __init__(self, sampling: Sampling, scores: Scores, row: int) -> None:
        self._sampling, self._scores, self._row = sampling, scores, row
        self._known: dict[int, Doubles] = {}

    def at(self, node: int) -> Doubles:
        """p [V] after `node`."""
        if node not in self._known:
            logits = self._scores.after(self._row, node)
            ids, probs = self._sampling.distribution(logits)
            if ids is not None:
                dense = np.zeros(len(logits))
                dense[ids] = probs
                probs = dense
            self._known[node] = probs
        return self._known[node]


class StochasticRule(ABC):
    """A lossless rule with dice. A subclass says how it judges a tree against the target's laws."""

    lossless: ClassVar[bool] = True

    def __init__(self, sampling: Sampling, dice: Dice) -> None:
        self.sampling, self.dice = sampling, dice

    @classmethod
    def of(cls, sampling: Sampling, generator: np.random.Generator) -> Rule:
        """The rule for these settings; at temperature 0 it is `Greedy`."""
        from graftline.runtimes.rules.greedy import Greedy  # the rules import this file

        return Greedy(sampling) if sampling.greedy else cls(sampling, Dice(generator))

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        return self.decide(tree, Laws(self.sampling, scores, row))

    @abstractmethod
    def decide(self, tree: Tree, laws: Laws) -> Verdict:
        """The verdict on `tree`, whose draws are sound."""


def residual(p: Doubles, q: Doubles) -> Doubles:
    """What is left of the law p [V] when tokens have been accepted with mass min(p, q): the
    positive part of p - q, normalised; p itself where nothing but rounding is left."""
    rest = np.maximum(p - q, 0.0)
    mass = float(rest.sum())
    return rest / mass if mass > 0.0 else p


def proposal(draws: Draws, tokens: Sequence[int], place: int) -> Doubles:
    """q [V] that the draw at `place` came from, given the draws before it; `tokens` by node."""
    if draws.replacement or place == 0:
        return draws.probs
    q = draws.probs.copy()
    q[[tokens[node] for node in draws.order[:place]]] = 0.0
    return q / q.sum()


def point(token: int, vocabulary: int) -> Doubles:
    """The law [V] of a token chosen without chance."""
    law = np.zeros(vocabulary)
    law[token] = 1.0
    return law
