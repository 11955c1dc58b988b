"""The figures of a comparison: tokens per second, speed-up over plain, tokens per target pass.

Decode time is the time after the first token, so the prompt's own pass is left out. A recipe's
tokens per second are all tokens after the first over all decode time; its speed-up is the ratio
to `plain` over the same prompts in the same process.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graftline.commands.questions import Question, groups

PLAIN = "plain"


@dataclass(frozen=True)
class Answer:
    """One recipe's answer to one prompt; the times are medians over the repeats."""

    group: str
    tokens: tuple[int, ...]
    steps: int
    decode: float
    total: float
    lossless: bool
    stable: bool
    """Every repeat gave the same tokens."""
    predicted: float | None
    """Tokens per second that the controller expected; the median of the repeats."""
    controller: float
    """Seconds of decoding that the controller itself took; the median of the repeats."""


@dataclass(frozen=True)
class Difference:
    """Where an answer leaves plain's: the question, the prompt and the tokens they share."""

    recipe: str
    question: str
    prompt: Any
    common: tuple[int, ...]
    plain: int | None
    other: int | None


@dataclass(frozen=True)
class Row:
    """The published figures of one recipe on one group."""

    tokens_per_second: float
    speedup: float
    """Of all tokens over all time."""
    median_speedup: float
    """The median over the prompts of each one's speed-up: one long answer or one hitch of the
    machine does not decide it."""
    mat: float
    identical: bool
    prompts: int
    predicted: float | None
    """Tokens per second that the controller expected (None: it expects nothing)."""
    controller_share: float
    """The controller's own part of the decode time."""


@dataclass
class Comparison:
    """All answers, by recipe, in the same order of prompts."""

    recipes: tuple[str, ...]
    answers: dict[str, list[Answer]]
    differences: list[Difference] = field(default_factory=list[Difference])

    def row(self, recipe: str, group: str | None = None) -> Row:
        """Figures of a recipe on one group, or overall."""
        mine, plain = self._of(recipe, group), self._of(PLAIN, group)
        pairs = list(zip(mine, plain, strict=True))
        ratios = [_speed([a]) / _speed([p]) for a, p in pairs if _speed([p])]
        speed = _speed(mine)
        base = _speed(plain)
        steps = sum(a.steps for a in mine)
        after = sum(len(a.tokens) - 1 for a in mine)
        return Row(
            tokens_per_second=speed,
            speedup=speed / base if base else 0.0,
            median_speedup=statistics.median(ratios) if ratios else 0.0,
            mat=after / steps if steps else 0.0,
            identical=all(a.tokens == p.tokens and a.stable for a, p in pairs),
            prompts=len(mine),
            predicted=_predicted(mine),
            controller_share=sum(a.controller for a in mine) / sum(a.decode for a in mine),
        )

    def agreeing(self, recipe: str, group: str | None = None) -> int:
        """Prompts on which the recipe's tokens are plain's."""
        pairs = zip(self._of(recipe, group), self._of(PLAIN, group), strict=True)
        return sum(a.tokens == p.tokens for a, p in pairs)

    def overall_speed(self, recipe: str, group: str | None = None) -> float:
        """Tokens per second with the prompts' own passes included."""
        mine = self._of(recipe, group)
        seconds = sum(a.total for a in mine)
        return sum(len(a.tokens) for a in mine) / seconds if seconds else 0.0

    def lossless(self, recipe: str) -> bool:
        """True when the runtime vouched for every answer."""
        return all(a.lossless for a in self.answers[recipe])

    def _of(self, recipe: str, group: str | None) -> list[Answer]:
        return [a for a in self.answers[recipe] if group in (None, a.group)]


def _speed(answers: Sequence[Answer]) -> float:
    seconds = sum(a.decode for a in answers)
    return sum(len(a.tokens) - 1 for a in answers) / seconds if seconds else 0.0


def _predicted(answers: Sequence[Answer]) -> float | None:
    """All tokens after the first over the time that was expected of them."""
    seconds = 0.0
    for answer in answers:
        if answer.predicted is None:
            return None
        seconds += (len(answer.tokens) - 1) / answer.predicted
    return sum(len(a.tokens) - 1 for a in answers) / seconds if seconds else 0.0


def report(found: Comparison, questions: Sequence[Question]) -> dict[str, Any]:
    """The `recipes` part of the published JSON."""
    present = groups(questions)
    return {
        name: {
            "lossless": found.lossless(name),
            "groups": {group: vars(found.row(name, group)) for group in present},
            "overall": vars(found.row(name)),
        }
        for name in found.recipes
    }
