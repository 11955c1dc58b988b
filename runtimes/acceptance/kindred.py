"""Rejection sampling that counts a token together with its kin: common to GSD and LANTERN."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from graftline.runtimes.acceptance.lenient import Criterion, Lenient, dense
from graftline.runtimes.acceptance.stochastic import Dice, Doubles, point, proposal, residual
from graftline.runtimes.sampling import Logits, Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree


class Kinship(Protocol):
    """How tokens are counted together."""

    def trial(self, p: Doubles, q: Doubles, token: int) -> tuple[float, Doubles]:
        """The chance that `token`, drawn from q [V], stands where the target says p [V], and the
        distribution [V] that takes the place of p when it falls."""
        ...


class KindredRejection:
    """Speculative sampling (arXiv 2211.17192) in which a `Kinship` raises the chance to stand.

    Children are tried in the order of their draws, one that was not drawn as a point mass. When
    every token is its own only kin this is exact rejection sampling.
    """

    lossless: ClassVar[bool] = False

    def __init__(self, sampling: Sampling, dice: Dice, kinship: Kinship) -> None:
        self._sampling, self._dice, self._kinship = sampling, dice, kinship

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        path = [0]
        while True:
            logits = scores.after(row, path[-1])
            child, p = self._try(tree, path[-1], dense(self._sampling, logits), logits)
            if child is None:
                return Verdict(tuple(path), self._dice.draw(p))
            path.append(child)

    def _try(
        self, tree: Tree, node: int, p: Doubles, logits: Logits
    ) -> tuple[int | None, Doubles]:
        """The first child of `node` that stands, if one does, and what is left of p [V]; kin does
        not make up for being barred."""
        for child, q in _trials(tree, node, len(p)):
            token = int(tree.tokens[child])
            if logits[token] == -np.inf:
                p = residual(p, q)
                continue
            chance, rest = self._kinship.trial(p, q, token)
            if self._dice.coin(chance):
                return child, p
            p = rest
        return None, p


def kindred_rule(
    sampling: Sampling, generator: np.random.Generator, kinship: Kinship, criterion: Criterion
) -> Rule:
    """For sampling, rejection under the kinship; for greedy requests, the criterion."""
    if sampling.greedy:
        return Lenient(sampling, generator, criterion)
    return KindredRejection(sampling, Dice(generator), kinship)


def _trials(tree: Tree, node: int, vocabulary: int) -> list[tuple[int, Doubles]]:
    """The children of `node` in the order of their draws, and what each was drawn from."""
    draws = (tree.draws or {}).get(node)
    tokens = tree.token_list
    if draws is None:
        return [(child, point(tokens[child], vocabulary)) for child in tree.children[node]]
    return [(child, proposal(draws, tokens, place)) for place, child in enumerate(draws.order)]
