"""How many tokens each step of filling a canvas chooses, in which groups and how hot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graftline.errors import RequestError
from graftline.filling import Filling


@pytest.mark.parametrize("steps", [8, 16])
def test_counts_follow_the_schedule(steps: int) -> None:
    import numpy as np

    begun = 1 - np.linspace(0, 1, steps + 1)[:-1] ** 2.5
    left = np.floor(begun * 256).astype(int)
    each = [max(1, n) for n in (left[:-1] - left[1:]).tolist()]
    assert Filling(steps=steps).counts(256) == (*each, 256 - sum(each))


def test_groups_are_one_full_step_and_light_ones_behind_the_first() -> None:
    filling = Filling(steps=7, full=2, light=2)
    groups = filling.groups(64)
    assert [len(group) for group in groups] == [1, 1, 3, 2]
    assert sum(groups, ()) == filling.counts(64)
    assert sum(map(sum, groups)) == 64
    assert [len(g) for g in Filling(steps=16, full=8, light=1).groups(256)] == [1] * 8 + [2] * 4
    assert [len(g) for g in Filling(steps=3).groups(9)] == [1, 1, 1]


def test_temperatures_fall_to_the_last() -> None:
    found = Filling(steps=5, temperature=0.6).temperatures()
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(0.6)
    assert found[1] == pytest.approx(0.6 + 0.5 * 0.4), "1 - sqrt(1 / 4)"
    assert Filling(steps=1).temperatures() == (1.0,)


def test_it_says_what_it_does() -> None:
    filling = Filling(steps=16, full=8)
    assert filling.told() == "filled in 16 steps"
    told = "filled in 16 steps, behind the first 8 each full one with 1 light"
    assert replace(filling, light=1).told() == told
    assert replace(filling, light=1, full=15).told() == "filled in 16 steps"


def test_as_many_steps_as_fit() -> None:
    assert Filling.of(256) == Filling()
    assert Filling.of(6).counts(6)
    assert not Filling(Filling.of(6).steps + 1).fits(6)
    assert Filling.of(1).counts(1) == (1,)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"steps": 0}, "steps=0: a canvas takes at least one step"),
        ({"steps": 2.5}, r"steps=2\.5 is not valid; use a whole number"),
        ({"light": -1}, "light=-1 is not valid; use 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan is not valid"),
        ({"power": 0}, "power=0 is not valid; use a number above 0"),
        ({"steps": 9}, "8 masked positions are too few for 9 steps"),
    ],
)
def test_other_numbers_are_refused(numbers: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        replace(Filling(), **numbers).counts(8)
