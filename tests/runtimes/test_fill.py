"""Filling a canvas, by steps that are written down: what each computes, and over what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from graftline.filling import Filling
from graftline.runtimes.one_pass.fill import Filler

N, V, MASK = 12, 5, 4
"""Positions, tokens and the mask, which has scores of its own here."""


class Steps:
    """An engine whose best token at position p is p % 4, the surer the larger p is; it scores the
    mask above all. What a step keeps is its number."""

    def __init__(self) -> None:
        self.asked = list[tuple[Any, Any, Any]]()

    def __call__(self, tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        self.asked.append((tokens.copy(), at.copy(), dict(kept)))
        scores = np.zeros((*at.shape, V), np.float32)
        scores[..., MASK] = 99
        np.put_along_axis(scores, (at % 4)[..., None], at[..., None] * 1.0 + 12, axis=-1)
        return scores, {"kept": len(self.asked)}


def filled(canvas: Any, filling: Filling, seed: int = 0) -> tuple[Any, Steps]:
    steps = Steps()
    filler = Filler(steps, filling, MASK, np.random.default_rng(seed))
    return filler.fill(np.asarray(canvas)), steps


SURE = Filling(steps=4, full=1, light=1, temperature=0.0, choice=0.0)
"""Full, full and its light one, full: 1, 2 and 3, and 6 tokens."""


def test_the_surest_are_chosen_and_light_steps_compute_those_alone() -> None:
    made, steps = filled(np.full((2, N), MASK), SURE)
    assert SURE.groups(N) == ((1,), (2, 3), (6,)), SURE.groups(N)
    np.testing.assert_array_equal(made, np.tile(np.arange(N) % 4, (2, 1)))
    assert [at.shape[1] for _, at, _ in steps.asked] == [N, N, 5, N]
    tokens, at, kept = steps.asked[2]
    assert kept == {"kept": 2}, "what the full step before has kept"
    np.testing.assert_array_equal(at, [[10, 9, 8, 7, 6]] * 2)
    np.testing.assert_array_equal(tokens, [[2, 1] + [MASK] * 3] * 2)
    assert all(not kept for _, at, kept in steps.asked if at.shape[1] == N)
    whole = [(tokens == MASK).sum() // 2 for tokens, at, _ in steps.asked if at.shape[1] == N]
    assert whole == [12, 11, 6], "a group's tokens are in the canvas of the next full step"


def test_light_steps_save_rows() -> None:
    rows = {
        light: sum(at.size for _, at, _ in filled(
            np.full((1, 256), MASK), Filling(steps=16, full=8, light=light)
        )[1].asked)
        for light in (0, 1, 3)
    }  # fmt: skip
    groups = Filling(steps=16, full=8, light=1).groups(256)
    light = sum(sum(group) for group in groups if len(group) > 1)
    assert rows[0] == 16 * 256
    assert rows[1] == 12 * 256 + light
    assert rows[3] < rows[1] < 0.8 * rows[0] + light


def test_tokens_that_are_there_stay() -> None:
    canvas = np.full((2, N), MASK)
    canvas[0, [1, 5]], canvas[1, [0, 11]] = 3, 3
    made, _ = filled(canvas, SURE)
    np.testing.assert_array_equal(made, np.where(canvas == MASK, np.arange(N) % 4, canvas))


def test_one_seed_gives_the_same_tokens_again_and_never_the_mask() -> None:
    warm = Filling(steps=4, temperature=60.0, choice=60.0)
    one, again, other = (filled(np.full((4, N), MASK), warm, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert one.max() < MASK


def test_tokens_are_drawn_from_the_scores() -> None:
    """One step over one position: a chi-square test of 4,000 rows, seeded, of 3 degrees."""
    chances = np.asarray([0.5, 0.25, 0.2, 0.05])

    def step(tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        return np.log(np.broadcast_to([*chances, 1e-30], (*at.shape, V))), {}

    filler = Filler(step, Filling(steps=1, choice=3.0), MASK, np.random.default_rng(5))
    made = filler.fill(np.full((4000, 1), MASK))
    counts, expected = np.bincount(made[:, 0], minlength=4), 4000 * chances
    assert ((counts - expected) ** 2 / expected).sum() < 16.27, "one in a thousand"


def test_guidance_is_of_two_branches_in_one_step() -> None:
    """Both branches find p + 1 likelier than p, and the conditional one p likelier than the other
    does: u + s (c - u) is largest at p."""
    asked = list[int]()

    def step(tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        asked.append(len(tokens))
        np.testing.assert_array_equal(tokens[:2], tokens[2:])
        scores = np.zeros((*at.shape, V))
        np.put_along_axis(scores[:2], (at[:2] % 4)[..., None], 40.0, axis=-1)
        np.put_along_axis(scores, ((at + 1) % 4)[..., None], 60.0, axis=-1)
        return scores, {}

    sure = Filling(steps=4, full=4, temperature=0.0, choice=0.0, guidance=3.0)
    made = Filler(step, sure, MASK, np.random.default_rng(0)).fill(np.full((2, N), MASK))
    np.testing.assert_array_equal(made, np.tile(np.arange(N) % 4, (2, 1)))
    assert asked == [4] * 4, "each step is one call of both branches"


def test_guidance_rises_step_by_step() -> None:
    assert Filling(steps=4, guidance=5.0).guidances() == (5.0,) * 4
    assert Filling(steps=4, guidance=5.0, rises=True).guidances() == (2.0, 3.0, 4.0, 5.0)
    seen = list[float]()

    def step(tokens: Any, at: Any, kept: Any) -> tuple[Any, Any]:
        scores = np.zeros((*at.shape, V))
        scores[: len(at) // 2] += 1.0
        return scores, {}

    class Seeing(Filler):
        def _scored(self, tokens: Any, at: Any, kept: Any, guidance: float) -> Any:
            scores, left = super()._scored(tokens, at, kept, guidance)
            seen.append(float(scores[0, 0, 0]))
            return scores, left

    rising = Filling(steps=4, full=1, light=1, guidance=5.0, rises=True)
    assert rising.groups(N) == ((1,), (2, 3), (6,))
    Seeing(step, rising, MASK, np.random.default_rng(0)).fill(np.full((1, N), MASK))
    assert seen == [2.0, 3.0, 4.0, 5.0], "light steps have their own"
    assert "filled in 4 steps at guidance 5" in rising.told()
