"""Lossy acceptance on trees: the target's own choice first, else a child that may stand for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    seen: Iterable[int]

    @cached_property
    def logits(self) -> Logits:
        """[V], penalised for the tokens seen."""
        return self.sampling.penalised(self.scores.logits[self.row, self.node], self.seen)

    @cached_property
    def odds(self) -> Odds:
        """The target's distribution; for greedy requests the one at temperature 1."""
        sampling = replace(self.sampling, temperature=self.sampling.temperature or 1.0)
        if not sampling.filters:
            return Odds.of(self.logits, sampling.temperature)
        return Odds(dense(sampling, self.scores.logits[self.row, self.node], self.seen), 1.0)


Criterion = Callable[[Place, int, int], bool]
"""criterion(place, child, token): whether the child, which carries `token`, may stand."""


class Lenient:
    """Walks down the tree by the target's own choices, with the leave of a criterion.

    At each node the target chooses as it would without a draft. The child that carries its choice
    stands. When none does, the most probable of the children that meet the criterion stands
    instead; when none does either, the choice is emitted. So a criterion that nothing meets gives
    `Greedy` at temperature 0, and otherwise `PointMass`, token for token under one seed.
    """

    lossless: ClassVar[bool] = False

    def __init__(
        self, sampling: Sampling, generator: np.random.Generator, criterion: Criterion
    ) -> None:
        self._sampling, self._criterion = sampling, criterion
        self._uniforms = Uniforms.of(generator)
        self._seen: set[int] = set()

    def start(self, context: Sequence[int]) -> None:
        self._seen = set(context) if self._sampling.penalises else set()

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        tokens = tree.token_list
        path = [0]
        while True:
            node = path[-1]
            own = own_choice(self._sampling, self._uniforms, scores, row, node, self._seen)
            child = None
            if len(tokens) > 1 and (children := tree.children[node]):
                place = Place(scores, row, node, own, self._sampling, self._seen)
                child = self._successor(place, children, tokens)
            if self._sampling.penalises:
                self._seen.add(own if child is None else tokens[child])
            if child is None:
                return Verdict(tuple(path), own)
            path.append(child)

    def _successor(
        self, place: Place, children: Sequence[int], tokens: Sequence[int]
    ) -> int | None:
        for child in children:
            if tokens[child] == place.own:
                return child
        likely = sorted(children, key=lambda child: -place.logits[tokens[child]])
        standing = (child for child in likely if self._criterion(place, child, tokens[child]))
        return next(standing, None)


def own_choice(
    sampling: Sampling,
    chance: Uniforms | np.random.Generator,
    scores: Scores,
    row: int,
    node: int,
    seen: Iterable[int],
) -> int:
    """What the target chooses after `node`: its best token when greedy, else one draw."""
    if not sampling.greedy:
        return sampling.draw(scores.logits[row, node], seen, chance.random())
    if sampling.penalises:
        return int(np.argmax(sampling.penalised(scores.logits[row, node], seen)))
    return int(scores.argmax[row, node])


def dense(sampling: Sampling, logits: Logits, seen: Iterable[int] = ()) -> Doubles:
    """[V]: the distribution over the whole vocabulary, zero where filtered out."""
    ids, probs = sampling.distribution(logits, seen)
    if ids is None:
        return probs
    full = np.zeros(len(logits))
    full[ids] = probs
    return full
