"""What is spent on a draft model: it has to pay, is tried again, and is told by its own account."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from toy_drafts import COSTS, CheckedDraft

from graftline.runtimes.control.choose import Terms, choose
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.pace import COMPARED
from graftline.runtimes.control.paid import DEBT_STEPS, EXPLORE, RARER, Paid
from graftline.runtimes.drafters import make_drafter, pearl
from graftline.runtimes.resources import Resources

TERMS = Terms(1, 100, 256, 0.002)


class Bidding:
    """Steps of one sequence whose draft model drafts as much as is given, on toy costs."""

    def __init__(self, drafter: Any, costs: Costs = COSTS, settle: int = COMPARED) -> None:
        self.costs, self.drafter = replace(costs), drafter
        self.paid = Paid("toy", self.costs)
        for _ in range(settle):
            self.plain()

    def plain(self) -> None:
        """A step without a draft."""
        assert not self.bids()
        self.costs.pace.record("toy", "plain", 1, 1.0)
        self.paid.took(bought=False)

    def bids(self) -> bool:
        """Whether a draft is expected to pay."""
        offers = self.paid.offers([(0, self.drafter)], TERMS)
        return bool(choose(offers, 1, self.costs.of, 1).rows)

    def waits(self) -> int:
        """Plain steps up to the next draft."""
        count = 0
        while not self.bids():
            self.plain()
            count += 1
            assert count < 10_000, "it is never tried again"
        return count

    def draft(self, rows: int, accepted: int, taken: float = 1.0) -> None:
        """A step with a draft of `rows` tokens; times what it should take."""
        self.drafter.reads = rows
        self.paid.drafted(0, self.drafter, rows, TERMS)
        self.paid.learn(0, accepted)
        self.costs.pace.record("toy", "paid", 1, taken)
        self.paid.took(bought=True)


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


def test_catching_up_is_priced() -> None:
    drafter = drafting()
    drafter.start(list(range(30)))
    steps = Bidding(drafter)
    due = drafter.debt()
    assert due > 20.0
    (offer,) = steps.paid.offers([(0, drafter)], TERMS)
    assert offer.price == pytest.approx(drafter.price(offer.size) + due / 32)


def test_what_a_sequence_owes_makes_trying_again_rarer_but_not_for_good() -> None:
    """A draft that falls short pays for a prompt that it alone may have needed."""

    def waits(prompt: int) -> tuple[int, float]:
        drafter = drafting()
        steps = Bidding(drafter)
        for _ in range(30):
            if steps.bids():
                steps.draft(3, 0)
        drafter.start(list(range(prompt)))
        return steps.waits(), drafter.debt() / COSTS.of(1)

    (soon, _), (later, owed), (last, much) = (waits(n) for n in (1, 9, 3000))
    assert later == pytest.approx(soon + owed / EXPLORE, abs=2)
    assert last == pytest.approx(RARER * (soon + much / DEBT_STEPS / EXPLORE), rel=0.01)
    assert last < much / EXPLORE


def test_a_draft_that_lost_is_tried_again_and_every_failure_makes_that_rarer() -> None:
    """What it lacks to pay is made up for by EXPLORE tokens a plain step: that is all it costs."""
    steps = Bidding(drafting())
    assert steps.bids()
    drafts = 0
    while steps.bids():
        steps.draft(3, 0)
        drafts += 1
        assert drafts < 5
    waits: list[int] = []
    for _ in range(20):
        waits.append(steps.waits())
        steps.draft(3, 0)
    assert waits == sorted(waits)
    lost = (COSTS.of(4) + steps.drafter.price(3)) / COSTS.of(1) - 1.0
    assert lost / waits[-1] < 2.0 * EXPLORE
    for _ in range(20):
        steps.waits()
        steps.draft(3, 3)
    assert steps.bids(), "taken up again when it pays"


def test_what_a_drafted_step_is_expected_to_bring_is_what_such_drafts_have_brought() -> None:
    steps = Bidding(drafting())
    steps.paid.drafted(0, steps.drafter, 3, TERMS)
    first = steps.paid.expected(0)
    hope = steps.drafter.hope(steps.drafter.foresight())
    assert any(first == pytest.approx(sum(hope[1:rows])) for rows in range(2, len(hope) + 1))
    assert steps.paid.expected(1) == 0.0, "that sequence has no draft"
    for _ in range(60):
        steps.paid.learn(0, 7)
        steps.paid.drafted(0, steps.drafter, 7, TERMS)
    assert steps.paid.expected(0) == pytest.approx(7.0, rel=0.05)


def test_a_draft_is_as_deep_as_its_rows_bring_in() -> None:
    """Dinkelbach: one more row while its chance is at least the rate times its cost."""
    steps = Bidding(drafting())
    bid = steps.paid.bid(steps.drafter, TERMS, 0.1)
    assert bid.keep[1] == pytest.approx(0.1 * (COSTS.of(2) - COSTS.of(1)))
    assert bid.call(3) == pytest.approx(0.1 * 5.0)
    slow = steps.paid.bid(steps.drafter, TERMS, 0.01)
    assert slow.keep[1] == pytest.approx(bid.keep[1] / 2), "never less than plain's rate"
    for _ in range(3):
        steps.costs.pace.record("toy", "paid", 1, 2.0)
    charged = steps.paid.bid(steps.drafter, TERMS, 0.05)
    assert charged.keep[1] == pytest.approx(bid.keep[1]), "a rate by charged steps, costs without"
