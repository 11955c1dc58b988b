"""An early exit that pays is drafted with, whatever disturbs it; one that does not costs little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from simulated_exit import SimulatedExit

from graftline.runtimes.control import pace, paid


def test_an_exit_that_is_often_right_is_drafted_with() -> None:
    text = SimulatedExit(0.8).run(512)
    assert text.speed > 1.4
    assert text.each > 2.5


@pytest.mark.parametrize("believed", [0.8, 0.05])
def test_one_that_is_seldom_right_costs_little(believed: float) -> None:
    """Looking for it included."""
    text = SimulatedExit(0.05, believed)
    assert text.run(2048).speed > 0.97


def disturbed_first(times: float, steps: int) -> Callable[[str], float]:
    """The first drafted steps take so many times as long: whatever touches memory first."""
    left = [steps]

    def factor(kind: str) -> float:
        left[0] -= kind == "drafted"
        return times if kind == "drafted" and left[0] >= 0 else 1.0

    return factor


@pytest.mark.parametrize(("times", "steps"), [(8.0, 2), (4.0, 5)])
def test_a_hitch_of_the_first_drafts_is_soon_forgotten(times: float, steps: int) -> None:
    text = SimulatedExit(0.8, disturbed=disturbed_first(times, steps))
    text.run(256)
    before, began = text.plain, text.now
    text.run(256)
    assert (text.plain - before) / (text.now - began) > 1.2


@pytest.mark.parametrize(("times", "last"), [(1.5, 10**9), (3.0, 10**9), (3.0, 20)])
def test_a_machine_that_is_slow_for_a_while_drafts_as_before(times: float, last: int) -> None:
    """Plain steps of before say nothing of drafted ones now."""
    steps = [0]

    def factor(kind: str) -> float:
        steps[0] += 1
        return times if 10 <= steps[0] < last else 1.0

    assert SimulatedExit(0.8, disturbed=factor).run(512).each > 2.4


def test_drafts_that_really_are_slow_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SimulatedExit(0.8, disturbed=lambda kind: 4.0 if kind == "drafted" else 1.0)
    assert slow.run(2048).speed > 0.95
    monkeypatch.setattr(pace.Pace, "slower", lambda *_: 1.0)
    unseen = SimulatedExit(0.8, disturbed=lambda kind: 4.0 if kind == "drafted" else 1.0)
    assert unseen.run(512).speed < 0.6


def test_what_is_charged_is_expected_once() -> None:
    """Drafted steps that are slow and still pay: how slow steps are lately holds that already."""
    text = SimulatedExit(0.8, disturbed=lambda kind: 1.3 if kind == "drafted" else 1.0).run(128)
    before, began = text.lane.marks, text.now
    text.run(512)
    expected = text.lane.marks.plus(before, -1).milliseconds
    assert expected == pytest.approx(text.now - began, rel=0.1)


@pytest.mark.parametrize("believed", [0.8, 0.05])
def test_an_exit_that_becomes_right_is_found(believed: float) -> None:
    """Tokens that were not worth a row are judged too; by those alone that were, nothing of the
    change would ever be seen."""
    text = SimulatedExit(0.05, believed).run(512)
    text.accepted = 0.8
    text.run(512)
    before, began = text.plain, text.now
    text.run(512)
    assert (text.plain - before) / (text.now - began) > 1.4


def test_sequences_share_the_calls_of_an_exit() -> None:
    """Each for itself would not pay: what all of them share does."""
    assert SimulatedExit(0.8).run(256, batch=4).speed > 1.18
    assert SimulatedExit(0.05).run(512, batch=4).speed > 0.97


def test_branches_are_drafted_where_the_second_candidate_is_often_right() -> None:
    text = SimulatedExit(0.5, believed=0.5, trees=True).run(1024)
    assert text.branched > 0.5 * text.steps
    assert text.speed > 1.05 * SimulatedExit(0.5, believed=0.5).run(1024).speed


@pytest.mark.parametrize("believed", [0.8, 0.05])
def test_a_tree_that_is_seldom_right_costs_little(believed: float) -> None:
    assert SimulatedExit(0.05, believed, trees=True, second=0.05).run(2048).speed > 0.97


@pytest.mark.parametrize(("trees", "host"), [(True, 1.0), (True, 2.7), (False, 1.0)])
def test_what_drafting_takes_beside_its_calls_is_charged(trees: bool, host: float) -> None:
    """More than a call itself, or as long as a step: then nothing is drafted."""
    assert SimulatedExit(0.8, trees=trees, host=host).run(2048).speed > 0.97


def test_eight_sequences_draft_together_where_one_of_them_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a draft costs is what it costs among as many as draft now, not what it was in steps in
    which fewer of them did."""
    assert SimulatedExit(0.8).run(256, batch=8).speed > 1.04
    offer = paid.Paid._offer

    def alone(one: paid.Paid, *given: Any) -> Any:
        made = offer(one, *given)
        return replace(made, price=made.price + made.shared, shared=0.0)

    monkeypatch.setattr(paid.Paid, "_offer", alone)
    assert SimulatedExit(0.8).run(256, batch=8).speed < 1.02
