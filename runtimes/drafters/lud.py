"""Lexical Unit Decoding: tokens foretold at a model's own placeholders stand where it is sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.odds import Odds
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.placeholders import chain_behind
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

EXPLORE = 0.01
"""Tokens that placeholders may fall short of their cost for every step since the last ones."""
BELIEF, WEIGHT = 0.7, 8.0
"""How often a run goes on by one placeholder, as first believed; so many trials does that count."""
KEEP = 0.98
"""What is left of a trial's weight at the next one."""


class Runs:
    """How often the run of tokens that a chain of placeholders is sure of reached each of them, of
    all sequences; `idle`: steps since one was scored."""

    def __init__(self, depths: int) -> None:
        self._first = [BELIEF ** (depth + 1) for depth in range(depths)]
        self._hits, self._trials = [0.0] * depths, [0.0] * depths
        self.idle = 0

    def record(self, scored: int, run: int) -> None:
        """So many placeholders were scored, of which the first `run` were sure of their token."""
        for depth in range(scored):
            self._hits[depth] = self._hits[depth] * KEEP + (depth < run)
            self._trials[depth] = self._trials[depth] * KEEP + 1.0

    def reach(self) -> list[float]:
        """By placeholder, the chance that its token is committed. Never rising."""
        rows = zip(self._first, self._hits, self._trials, strict=True)
        return list(accumulate(((h + WEIGHT * f) / (t + WEIGHT) for f, h, t in rows), min))


@dataclass
class Lud:
    """Lexical Unit Decoding (arXiv 2405.15208): behind the last token stand placeholders, of which
    placeholder i foretells the token i + 2 places on. The first ones whose likeliest token has a
    probability of `threshold` or more are a lexical unit: a run of tokens that is committed as it
    is, and which the next step reads. The paper's control of repetitions is the request's own
    `repetition_penalty` here, which does not reach placeholders.

    To be judged by a rule that lets all of it stand: nothing compares what is committed with what
    the model would have said behind it. A row of text is worth a token; a placeholder what it is
    likely to bring the next step, less the row that reads it there. While none is scored, a try is
    taken for better by and by, at one hundredth of the time.
    """

    branching: ClassVar[bool] = False
    rows: int = 8
    threshold: float = 0.9
    """The least probability of a token that is committed."""
    signal: int = field(default=0, init=False)
    row: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.rows < 2 or not 0 < self.threshold <= 1:
            raise GraftlineError(
                f"lud: rows={self.rows}, threshold={self.threshold} are not valid; use rows >= 2 "
                "and a probability above 0"
            )

    def equip(self, resources: Resources) -> None:
        """Raises GraftlineError for a bundle whose graph has no placeholders."""
        if not resources.placeholders:
            raise missing("lud", "placeholder")
        self._vocabulary, self._depths = resources.vocabulary, resources.placeholders
        self._runs = Runs(self._depths)
        self.start((0,))

    def fork(self) -> Lud:
        other = Lud(self.rows, self.threshold)
        other._vocabulary, other._depths, other._runs = self._vocabulary, self._depths, self._runs
        other.start((0,))
        return other

    def start(self, context: Sequence[int]) -> None:
        self._last, self.signal = int(context[-1]), 0
        self._unit: list[int] = []
        """What is committed behind the last token."""

    def propose(self, budget: int) -> Tree:
        rows = min(budget, self.rows)
        tokens = [self._last, *self._unit][:rows]
        gains = [1.0] * len(tokens)
        self.signal = 1 if len(tokens) > 1 else 2
        tried = EXPLORE * self._runs.idle / self._depths
        for depth, reach in enumerate(self._runs.reach()[: rows - len(tokens)]):
            worth = min(max(reach * (1.0 - self.row), tried), gains[-1])
            if worth <= 0.0:
                break
            tokens.append(self._vocabulary + depth)
            gains.append(worth)
        above = [1.0, *gains[:-1]]
        probs = [gain / parent for gain, parent in zip(gains, above, strict=True)]
        chain = Tree.chain(tokens)
        return Tree(chain.tokens, chain.parents, np.asarray(probs, np.float32))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self._last, self._unit = verdict.tokens(tree)[-1], []
        scored = chain_behind(tree, verdict.path[-1], self._vocabulary)
        self._runs.idle = 0 if scored else self._runs.idle + 1
        for place in scored:
            if Odds.of(scores.logits[row, place]).highest < self.threshold:
                break
            self._unit.append(int(scores.argmax[row, place]))
        self._runs.record(len(scored), len(self._unit))

    def prior(self, signal: int) -> Sequence[float]:
        return (1.0,)
