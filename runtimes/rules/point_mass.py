"""Exact acceptance of trees whose drafts are point masses, for any sampling settings."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.uniforms import Uniforms
from graftline.runtimes.verdict import Rule, Verdict, walk
from graftline.tree import Tree


class PointMass:
    """Rejection sampling for drafts without probabilities.

    The rule of Leviathan et al. (arXiv 2211.17192) at a node with target p and drafted children
    x1, x2, ...: accept x1 with probability p(x1), else remove it from p, renormalise, try x2, and
    at last draw from the residual. So child xi is taken with probability p(xi) and every other
    token with its own: one draw from p decides all of it. We draw once per emitted token, with one
    uniform number each, and follow the child that carries the draw. Hence more than equality in
    distribution: under one seed every drafter, tree shape and batch emits plain sampling's tokens,
    and so does a fused step, which takes the same numbers.
    """

    lossless: ClassVar[bool] = True

    def __init__(self, sampling: Sampling, uniforms: Uniforms) -> None:
        self.sampling, self.uniforms = sampling, uniforms

    @classmethod
    def of(cls, sampling: Sampling, generator: np.random.Generator) -> Rule:
        """The rule for these settings; at temperature 0 it is `Greedy`."""
        return Greedy(sampling) if sampling.greedy else cls(sampling, Uniforms.of(generator))

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        return walk(tree, lambda node: self._draw(scores, row, node))

    def _draw(self, scores: Scores, row: int, node: int) -> int:
        return self.sampling.draw(scores.after(row, node), self.uniforms.random())
