"""From drafts and what the target says of them to a judge head: labels without a labeller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.rules.judge import JudgeHead, hidden_states, train_judge
from graftline.runtimes.session import Bools, Floats, Scores
from graftline.runtimes.study.recorder import Step
from graftline.runtimes.study.tuning import Tuning, beliefs, expected_rate
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

ROWS = 9
"""Most rows of a draft that is learned from."""
RIGHT = 0.1
"""A drafted token counts as right where the target finds it at least so likely as its best."""

Halves = tuple[Sequence["Judged"], Sequence["Judged"]]


@dataclass(frozen=True)
class Judged:
    """The tokens of one drafted chain, after those before them: `hidden` [n, H], the state of each
    one's own row; whether it is the target's choice, `own` [n]; and whether it is `right` [n]."""

    hidden: Floats
    own: Bools
    right: Bools


class Judging:
    """`Greedy`, which also writes down what the target says of every drafted token.

    Judge Decoding (arXiv 2501.19309) has people label the tokens of answers known to be right or
    wrong. Here the label is the target's: a token is right where it is `RIGHT` times as likely as
    the best, so the head learns to see from a token's own state what the target would have said in
    the row before.
    """

    lossless: ClassVar[bool] = True

    def __init__(self) -> None:
        self._greedy = Greedy()
        self.drafts: list[Judged] = []

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        if len(tree) > 1:
            self.drafts.append(self._seen(tree, scores, row))
        return self._greedy.judge(tree, scores, row)

    @staticmethod
    def _seen(chain: Tree, scores: Scores, row: int) -> Judged:
        if not chain.is_chain:
            raise GraftlineError("judge heads are learned from chains; tune prompt-lookup's drafts")
        tokens, places = chain.tokens[1:], np.arange(len(chain) - 1)
        logits = scores.logits[row, places]
        short = logits[places, tokens] - logits.max(axis=1)
        own = scores.argmax[row, places] == tokens
        hidden = hidden_states(scores)[row, 1 : len(chain)]
        return Judged(hidden.copy(), own, own | (short >= math.log(RIGHT)))


def tune_judge(recipe: str, halves: Halves, costs: Costs, threshold: float) -> Tuning:
    """Train a head on all drafts; kept where heads trained on one half of the questions promise
    more tokens per second on the other than the target's own choices.

    Raises GraftlineError when there is nothing to tell right from wrong by.
    """
    before = after = 0.0
    for seen, held in (halves, halves[::-1]):
        head = _trained(recipe, seen)
        before += _rate([_step(d, d.own) for d in held], costs) / 2
        stands = (d.own | (head.chances(d.hidden) > threshold) for d in held)
        after += _rate([_step(d, s) for d, s in zip(held, stands, strict=True)], costs) / 2
    every = [*halves[0], *halves[1]]
    better = after > before
    head = _trained(recipe, every).to_json() if better else {}
    return Tuning(recipe, len(every), before, after if better else before, {}, judge=head)


def _trained(recipe: str, drafts: Sequence[Judged]) -> JudgeHead:
    right = np.concatenate([d.right for d in drafts]) if drafts else np.zeros(0, np.bool_)
    if right.all() or not right.any():
        raise GraftlineError(
            f"recipe {recipe}: {len(drafts)} drafts, {int(right.sum())} of their {len(right)} "
            "tokens right, cannot train a judge; give more prompts, or let the answers be longer"
        )
    return train_judge(np.concatenate([d.hidden for d in drafts]), right)


def _step(draft: Judged, stands: Bools) -> Step:
    """The draft as a recorded step in which the tokens up to the first that falls came true."""
    accepted = len(stands) if stands.all() else int(np.argmin(stands))
    return Step(0, len(stands) + 1, tuple(range(1, accepted + 1)), (0,) * accepted)


def _rate(steps: Sequence[Step], costs: Costs) -> float:
    """Expected tokens per second of these drafts, scored as far as they pay."""
    first = tuple(0.5**row for row in range(ROWS))
    learned = beliefs(steps, lambda signal: first)
    return expected_rate(steps, lambda signal: learned.get(signal, first), costs, False)
