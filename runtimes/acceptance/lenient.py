"""Lossy acceptance on trees: the target's own choice first, else a child that may stand for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from graftline.runtimes.acceptance.odds import Odds
from graftline.runtimes.sampling import Doubles, Logits, Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.uniforms import Uniforms
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass(frozen=True)
class Place:
    """An accepted node, and what the target says should follow it."""

    scores: Scores
    row: int
    node: int
    own: int
    """The token the target chose: its best when greedy, else its draw."""
    sampling: Sampling

    @cached_property
    def logits(self) -> Logits:
        """[V], as the request has them shaped."""
        return self.scores.after(self.row, self.node)

    @cached_property
    def odds(self) -> Odds:
        """The target's distribution; for greedy requests the one at temperature 1."""
        sampling = replace(self.sampling, temperature=self.sampling.temperature or 1.0)
        if not sampling.filters:
            return Odds.of(self.logits, sampling.temperature)
        return Odds(dense(sampling, self.logits), 1.0)


Criterion = Callable[[Place, int, int], bool]
"""criterion(place, child, token): whether the child, which carries `token`, may stand."""


class Lenient:
    """Walks down the tree by the target's own choices, with the leave of a criterion.

    At each node the target chooses as it would without a draft. The child that carries its choice
    stands. When none does, the most probable of the children that meet the criterion stands
    instead, never a barred one; when none does either, the choice is emitted. So a criterion that
    nothing meets gives `Greedy` at temperature 0, and otherwise `PointMass`, token for token under
    one seed.
    """

    lossless: ClassVar[bool] = False

    def __init__(
        self, sampling: Sampling, generator: np.random.Generator, criterion: Criterion
    ) -> None:
        self._sampling, self._criterion = sampling, criterion
        self._uniforms = Uniforms.of(generator)

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        tokens = tree.token_list
        path = [0]
        while True:
            node = path[-1]
            own = own_choice(self._sampling, self._uniforms, scores, row, node)
            child = None
            if len(tokens) > 1 and (children := tree.children[node]):
                place = Place(scores, row, node, own, self._sampling)
                child = self._successor(place, children, tokens)
            if child is None:
                return Verdict(tuple(path), own)
            path.append(child)

    def _successor(
        self, place: Place, children: Sequence[int], tokens: Sequence[int]
    ) -> int | None:
        for child in children:
            if tokens[child] == place.own:
                return child
        allowed = [child for child in children if place.logits[tokens[child]] > -np.inf]
        likely = sorted(allowed, key=lambda child: -place.logits[tokens[child]])
        standing = (child for child in likely if self._criterion(place, child, tokens[child]))
        return next(standing, None)


def own_choice(
    sampling: Sampling,
    chance: Uniforms | np.random.Generator,
    scores: Scores,
    row: int,
    node: int,
) -> int:
    """What the target chooses after `node`: its best token when greedy, else one draw."""
    if not sampling.greedy:
        return sampling.draw(scores.after(row, node), chance.random())
    return scores.best(row, node)


def dense(sampling: Sampling, logits: Logits) -> Doubles:
    """[V]: the distribution over the whole vocabulary, zero where filtered out."""
    ids, probs = sampling.distribution(logits)
    if ids is None:
        return probs
    full = np.zeros(len(logits))
    full[ids] = probs
    return full
