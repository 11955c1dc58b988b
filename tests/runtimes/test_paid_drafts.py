"""What is spent on a draft model: it has to pay, is tried again, and is told by its own account."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_drafts import COSTS, CheckedDraft

from graftline.runtimes.control.choose import Terms, choose
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.pace import COMPARED
from graftline.runtimes.control.paid import Paid, promised
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.drafters import make_drafter, pearl
from graftline.runtimes.resources import Resources
from graftline.tree import Tree

TERMS = Terms(1, 100, 256, 0.002)


class Bidding:
    """Steps of one sequence whose draft model drafts as much as is given, on toy costs."""

    def __init__(self, drafter: Any, costs: Costs = COSTS, settle: int = COMPARED) -> None:
        self.costs, self.drafter = replace(costs), drafter
        self.paid = Paid("toy", self.costs)
        for _ in range(settle):
            self.plain()

    def plain(self, taken: float = 1.0) -> None:
        """A step without a draft; times what it should take."""
        assert not self.bids()
        self.costs.pace.record("toy", "plain", 1, taken)
        one = self.costs.of(1)
        self.paid.took(1, one, one * taken, one, bought=False)

    def bids(self) -> bool:
        """Whether a draft is expected to pay; else there may be a try."""
        offers = self.paid.offers([(0, self.drafter)], TERMS)
        return bool(choose(offers, 1, self.costs.of, 1).rows)

    def tries(self) -> bool:
        return self.paid.try_again([(0, self.drafter)], TERMS)

    def draft(self, rows: int, accepted: int, taken: float = 1.0) -> None:
        """A step with a draft of `rows` tokens."""
        self.drafter.reads = rows
        price = self.paid.drafted(0, self.drafter, rows, TERMS)
        self.paid.learn(0, accepted)
        expected = self.costs.of(rows + 1) + price
        self.costs.pace.record("toy", "paid", 1, taken)
        self.paid.took(accepted + 1, expected, taken * expected, self.costs.of(1), bought=True)


def drafting() -> Any:
    drafter: Any = make_drafter("draft-model", {}, Resources(draft=lambda: CheckedDraft()))
    drafter.start([1, 2, 3])
    return drafter


def test_the_first_steps_are_plain_and_a_slow_draft_is_found_out() -> None:
    """As PEARL's where two threads share two cores."""
    steps, drafted = Bidding(drafting(), settle=0), 0
    for step in range(40):
        if not steps.bids():
            steps.costs.pace.record("toy", "plain", 1, 1.0)
            continue
        assert step >= COMPARED
        drafted += 1
        steps.draft(3, 3, taken=8.0)
    assert drafted == 2  # one may be a hitch


def test_a_draft_that_is_hardly_better_than_plain_has_to_show_it_first() -> None:
    """Believed 1.06 times as fast: not drafted on a belief, but on what it has brought."""
    drafter = drafting()
    drafter.price = lambda reads: 9.0 * reads
    drafter.hope = lambda foresight: (1.0, 0.86)
    assert 1.03 < 1.86 * 20.0 / (26.0 + 9.0) < 1.1
    steps = Bidding(drafter, Costs({1: 20.0, 2: 26.0}, {}))
    assert not steps.bids()
    for _ in range(12):
        steps.paid.budget = 100.0
        assert steps.bids() or steps.tries()
        steps.draft(1, 1)
    assert steps.bids()


def test_pearl_hopes_for_no_more_than_its_steps_that_verify() -> None:
    resources = Resources(draft=lambda: CheckedDraft(), vocabulary=40)
    pearl: Any = make_drafter("pearl", {"rows": 4}, resources)
    share = pearl._reader.engine.agreement
    stands = share**3
    verifying, idle = 1.0, 1.0 - stands  # of two steps in a row, after one that verified
    mean = verifying / (verifying + idle)
    assert pearl.hope(1) == pytest.approx((1, *(mean * share**row for row in (1, 2, 3))))


def test_pearl_is_priced_by_the_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft and target with two threads each on two cores: neither hides the other."""
    monkeypatch.setattr(CheckedDraft, "threads", 2, raising=False)

    def price(cores: int, **options: Any) -> float:
        monkeypatch.setattr(pearl.os, "cpu_count", lambda: cores)
        drafter: Any = make_drafter(
            "pearl", options, Resources(draft=lambda: CheckedDraft(), vocabulary=40)
        )
        return drafter.price(2)

    assert price(4) == price(8) == 2 * 5.0
    assert price(2) == 2 * 5.0 * (1 + pearl.CROWDED)
    assert price(2, overlap=1.0) == 0.0


def test_catching_up_is_priced_and_tries_are_paid_for_whatever_they_take() -> None:
    drafter = drafting()
    drafter.start(list(range(30)))
    steps = Bidding(drafter)
    due = drafter.debt()
    assert due > 20.0
    (offer,) = steps.paid.offers([(0, drafter)], TERMS)
    assert offer.price == pytest.approx(drafter.price(offer.size) + due / 32)
    assert steps.paid.bid(drafter, TERMS, 0.1).rows == 2, "the first draft of all"
    steps.draft(1, 0)
    assert steps.paid.bid(drafter, TERMS, 0.1).rows > 2
    steps.paid.trying, steps.paid.budget = True, 1.0
    expected = COSTS.of(2) + 5.0
    steps.draft(1, 0, taken=(expected + 50.0) / expected)
    assert steps.paid.budget == pytest.approx(-49.0)


def test_tries_are_saved_for_only_while_nothing_is_drafted_and_failures_make_them_rarer() -> None:
    steps = Bidding(drafting())
    for _ in range(50):
        assert steps.bids()
        steps.draft(3, 3)
    assert steps.paid.budget == 0.0
    waits: list[int] = []
    for _ in range(3):
        waits.append(1)
        while not steps.tries():
            waits[-1] += 1
            steps.paid._idle = 0
        steps.draft(1, 0)
    assert waits[1] > 1.5 * waits[0]
    assert waits[2] > 1.5 * waits[1]


def test_what_a_drafted_step_is_expected_to_bring_is_known_once_it_is_drafted() -> None:
    """By the draft's own account of each token, put right by what such accounts were worth."""
    probs = np.asarray([1, 0.8, 0.5, 0.5], np.float32)
    tree = Tree(np.arange(4), np.arange(-1, 3), probs)
    assert promised(tree) == pytest.approx(0.8 + 0.4 + 0.2)
    assert promised(Tree.chain([0, 1])) == 0.0
    control = Speculation("toy", COSTS, lambda _: (1.0,), paid=Paid("toy", COSTS))
    track, told = control.track(), list[float]()
    for _ in range(40):
        track.promise = promised(tree)
        told.append(control.chose(track, 4))
        control.learn(track, [1, 2, 3, 9])  # more than it promised
    assert told[0] == pytest.approx(1.4)
    assert told[-1] == pytest.approx(3.0, rel=0.1)


def test_a_draft_is_as_deep_as_its_rows_bring_in() -> None:
    """Dinkelbach: one more row while its chance is at least the rate times its cost."""
    steps = Bidding(drafting())
    steps.draft(1, 0)
    bid = steps.paid.bid(steps.drafter, TERMS, 0.1)
    assert bid.keep[1] == pytest.approx(0.1 * (COSTS.of(5) - COSTS.of(1)) / 4)
    assert bid.call(3) == pytest.approx(0.1 * 5.0)
    slower = steps.paid.bid(steps.drafter, TERMS, 0.05)
    assert slower.keep[1] == bid.keep[1] / 2, "never less than plain's rate"
