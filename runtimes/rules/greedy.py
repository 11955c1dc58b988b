"""Greedy acceptance: a drafted token stands when it is the target's best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict, walk
from graftline.tree import Tree


class Greedy:
    """Reads argmax only; with a repetition penalty the logits of the path's nodes."""

    lossless: ClassVar[bool] = True

    def __init__(self, sampling: Sampling | None = None) -> None:
        self.sampling = sampling or Sampling()
        self._seen: set[int] = set()

    @classmethod
    def of(cls, sampling: Sampling, generator: np.random.Generator) -> Greedy:
        """The rule for these settings. Raises RequestError when they ask for randomness."""
        if not sampling.greedy:
            raise RequestError(
                f"temperature {sampling.temperature} asks for sampling, and this recipe's rule is "
                "greedy; use temperature=0 or another recipe"
            )
        return cls(sampling)

    def start(self, context: Sequence[int]) -> None:
        self._seen = set(context)

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        if self.sampling.penalises:
            return walk(tree, lambda node: self._penalised(scores, row, node))
        best: list[int] = scores.argmax[row].tolist()
        return walk(tree, best.__getitem__)

    def _penalised(self, scores: Scores, row: int, node: int) -> int:
        token = int(np.argmax(self.sampling.penalised(scores.logits[row, node], self._seen)))
        self._seen.add(token)  # every token chosen on the walk is emitted, so it is context
        return token
