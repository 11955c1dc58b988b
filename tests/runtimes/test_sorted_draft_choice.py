"""Sub-models of one draft: the one that pays is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sub_models import COSTS, STEPS, SubModel, calls, engine_of, nest
from toy_session import ToySession

from graftline.recipe import Recipe, recipe


@pytest.mark.parametrize("useless", [0, 2])
def test_a_sub_model_that_never_pays_is_left_and_only_tried(
    prompts: list[list[int]], useless: int
) -> None:
    """The shallowest knows nothing; or the whole knows no more than the one before it."""
    skills = (0, 7, 9) if useless == 0 else (5, 9, 9)
    made: list[Sequence[SubModel]] = []

    def make(target: ToySession) -> Sequence[SubModel]:
        made.append(nest(target, skills))
        made[-1][useless].agreement = 0.9  # what it is believed to be
        return made[-1]

    engine = engine_of(make, recipe("s2d"), COSTS)
    options: dict[str, Any] = {"max_new_tokens": 150, "ignore_eos": True}
    for prompt in prompts[:6]:
        engine.generate(prompt, **options)
    before = np.sum([calls(e) for e in made], axis=0)
    late = [engine.generate(prompt, **options) for prompt in prompts[:6]]
    after = np.sum([calls(e) for e in made], axis=0) - before
    spent = after * STEPS
    assert sum(r.stats.steps for r in late) < 0.6 * 6 * 149
    assert before[useless] > 5  # it was believed at first
    assert spent[useless] < (0.03 if useless == 0 else 0.25) * spent.sum()


def test_a_sub_model_that_becomes_good_is_taken_up_again(prompts: list[list[int]]) -> None:
    made: list[Sequence[SubModel]] = []

    def make(target: ToySession) -> Sequence[SubModel]:
        made.append(nest(target, (0, 7, 9)))
        return made[-1]

    engine = engine_of(make, recipe("s2d"), COSTS)
    options: dict[str, Any] = {"max_new_tokens": 150, "ignore_eos": True}
    counts: list[Any] = []
    for round_of_prompts in (prompts[:3], prompts[3:6], prompts[:10], prompts[3:6]):
        made[0][0].session.skill = 9 if len(counts) >= 2 else 0
        for prompt in round_of_prompts:
            engine.generate(prompt, **options)
        counts.append(np.sum([calls(e) for e in made], axis=0) - sum(counts))
    left, taken = counts[1] * STEPS, counts[3] * STEPS
    assert 0 < left[0] < 0.02 * left.sum()
    assert taken[0] > 0.5 * taken.sum()


def test_useless_drafts_are_given_up_altogether(prompts: list[list[int]]) -> None:
    engine = engine_of(lambda target: nest(target, (0, 0, 0)), recipe("s2d"), COSTS)
    options: dict[str, Any] = {"max_new_tokens": 120, "ignore_eos": True}
    for prompt in prompts[:6]:
        engine.generate(prompt, **options)
    late = [engine.generate(prompt, **options) for prompt in prompts[:6]]
    assert sum(r.stats.drafted for r in late) < 0.03 * 6 * 119


def test_a_cheap_sub_model_saves_time_that_the_whole_draft_takes(prompts: list[list[int]]) -> None:
    """Milliseconds by the known costs, of s2d and of the whole draft alone, for the same tokens."""
    options: dict[str, Any] = {"max_new_tokens": 150, "ignore_eos": True}
    spent: dict[str, float] = {}
    for name, drafter in (("s2d", "sorted-draft"), ("whole", "draft-model")):
        chosen = Recipe(name, "", "", True, (), "", drafter, "point-mass", {"rows": 12})
        made: dict[int, SubModel] = {}

        def make(target: ToySession, made: dict[int, SubModel] = made) -> Sequence[SubModel]:
            engines = nest(target, (8, 8, 9), steps=(0.8, 3.0, 5.0))
            made.update({id(e): e for e in engines})
            return engines

        engine = engine_of(make, chosen, COSTS)
        target_ms = 0.0
        for prompt in [*prompts[:8], *prompts[:8]]:
            result = engine.generate(prompt, **options)
            rows = 1 + result.stats.drafted / max(result.stats.steps, 1)
            target_ms += result.stats.steps * COSTS.of(round(rows))
        draft_ms = sum(e.step * (1 + 0.4 * (n - 1)) for e in made.values() for n in e.calls)
        spent[name] = target_ms + draft_ms
    assert spent["s2d"] < 0.85 * spent["whole"]
