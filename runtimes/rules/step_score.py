"""Whole-step acceptance: a drafted step of reasoning stands or falls as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.acceptance.lenient import own_choice
from graftline.runtimes.acceptance.odds import Odds
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree

SCORES = ("likelihood", "advantage")

@dataclass(frozen=True)
class StepScore:
    """Accepts a drafted text step whole when the target's score of it is high enough.

    Where a step ends is the drafter's to say: its proposal, a chain, is the step. The score is a
    mean per token at temperature 1. A step below the threshold is judged token by token, exactly,
    as SpecReason does when it runs over speculative decoding. Strict: any threshold > 0 (the
    target's choices only). Loose: threshold = -inf (everything).

    - "likelihood", after SpecReason (arXiv 2504.07891): the log-probability that the target gives
      the step. SpecReason asks its target for a mark in words, which takes another prompt.
    - "advantage", after Arbitrage (arXiv 2512.05033): by how much it falls short of the likeliest
      token in each place, so a step is sent back only where the target would write a better one.
      Arbitrage has a trained router guess that; here the pass that scores the step shows it.
    """

    lossless: ClassVar[bool] = False
    threshold: float = -1.0
    """Least score, in nats per token."""
    score: str = "likelihood"
    """One of `SCORES`."""

    def __post_init__(self) -> None:
        if np.isnan(self.threshold):
            raise GraftlineError("step-score: threshold=nan is not valid; use nats per token")
        if self.score not in SCORES:
            raise GraftlineError(
                f"step-score: no score '{self.score}'{nearest(self.score, SCORES)}"
            )

    def of(
        self, sampling: Sampling, generator: np.random.Generator, resources: Resources
    ) -> StepRule:
        """The rule for these settings; at temperature > 0 a draw follows an accepted step."""
        return StepRule(sampling, generator, self.threshold, self.score == "advantage")


class StepRule:
    """`StepScore` for one sequence."""

    lossless: ClassVar[bool] = False

    def __init__(
        self, sampling: Sampling, generator: np.random.Generator, threshold: float, relative: bool
    ) -> None:
        self._sampling, self._generator, self._threshold = sampling, generator, threshold
        self._relative = relative
        self._exact: Rule = PointMass.of(sampling, generator)

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        if not tree.is_chain:
            raise GraftlineError("step-score judges a step, which is a chain; use another drafter")
        if len(tree) > 1:
            score = self._score(tree, scores, row)
            if score >= self._threshold and score > -math.inf:  # -inf: a token is barred
                last = len(tree) - 1
                token = own_choice(self._sampling, self._generator, scores, row, last)
                return Verdict(tuple(range(last + 1)), token)
        return self._exact.judge(tree, scores, row)

    def _score(self, step: Tree, scores: Scores, row: int) -> float:
        """The mean log-probability of the drafted tokens, `relative` to the likeliest ones'; -inf
        where one is barred."""
        total = 0.0
        for node, token in enumerate(step.tokens[1:].tolist()):
            logits = scores.after(row, node)
            total += float(logits[token] - logits.max())
            if not self._relative:
                total -= math.log(Odds.of(logits).total)
        return total / (len(step) - 1)
