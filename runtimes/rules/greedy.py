"""Greedy acceptance: a drafted token stands when it is the target's best."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict, walk
from graftline.tree import Tree


class Greedy:
    """Reads argmax only; where a request shapes logits, those of the path's nodes."""

    lossless: ClassVar[bool] = True

    def __init__(self, sampling: Sampling | None = None) -> None:
        self.sampling = sampling or Sampling()

    @classmethod
    def of(cls, sampling: Sampling, generator: np.random.Generator) -> Greedy:
        """The rule for these settings. Raises RequestError when they ask for randomness."""
        if not sampling.greedy:
            raise RequestError(
                f"temperature {sampling.temperature} asks for sampling, and this recipe's rule is "
                "greedy; use temperature=0 or another recipe"
            )
        return cls(sampling)

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        return walk(tree, partial(scores.best, row))
