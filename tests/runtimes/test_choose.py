"""Rows are taken where they bring most tokens per millisecond, over all sequences together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from graftline.runtimes.control.choose import BUDGET, MARGIN, Offer, choose

Cost = Callable[[int, bool], float]


def linear(first: float, row: float) -> Cost:
    return lambda rows, branching: first + row * rows + 5.0 * branching


def falling(rng: np.random.Generator, rows: int) -> list[float]:
    return sorted(rng.random(rows).tolist(), reverse=True)


@pytest.mark.parametrize("seed", range(30))
def test_no_other_rows_would_be_better(seed: int) -> None:
    """Against all combinations, where a row costs as much as any other."""
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 4))
    cost = linear(10.0, float(rng.uniform(0.3, 4.0)))
    offers = [Offer(s, falling(rng, int(rng.integers(1, 5)))) for s in range(batch)]
    choice = choose(offers, batch, cost, batch)

    def rate(extra: tuple[int, ...]) -> float:
        gained = sum(sum(o.gains[:n]) for o, n in zip(offers, extra, strict=True))
        return (batch + gained) / cost(batch + sum(extra), False)

    best = max(rate(extra) for extra in product(*(range(len(o.gains) + 1) for o in offers)))
    plain = batch / cost(batch, False)
    if best <= plain * (1.0 + MARGIN / batch):
        best = plain
    assert choice.rate == pytest.approx(best, rel=0.02)
    extra = tuple(choice.rows.get(s, 1) - 1 for s in range(batch))
    assert rate(extra) == pytest.approx(choice.rate)
    assert choice.milliseconds == cost(batch + sum(extra), False)


def test_sequences_score_different_numbers_of_rows() -> None:
    """What copies gets the rows, what does not gets none."""
    offers = [Offer(0, [0.9] * 5), Offer(1, [0.1] * 6), Offer(2, [0.9, 0.1, 0.1])]
    choice = choose(offers, 4, linear(10.0, 1.0), 4)
    assert choice.rows == {0: 6, 2: 2}


def test_steps_of_several_sequences_have_few_sizes() -> None:
    """The first of a size takes longer: 11 rows of four sequences are 10, of one they are 11."""
    seven, cost = Offer(0, [0.9] * 7), linear(10.0, 1.0)
    assert choose([seven], 4, cost, 4).rows == {0: 7}
    assert choose([Offer(0, [0.9] * 10)], 1, cost, 1).rows == {0: 11}
    assert choose([Offer(0, [6.3], size=7)], 4, cost, 4).rows == {0: 8}, "as it is or not at all"
    paid = [Offer(one, [0.9], price=0.1) for one in range(9)]
    assert len(choose(paid, 9, cost, 9).rows) == 9, "their rows are not known yet"


def test_a_step_that_hardly_gains_is_left() -> None:
    """By MARGIN tokens: the best of many estimates looks too good."""
    cost = linear(10.0, 1e-6)
    for sequences in (1, 7):
        assert choose([Offer(0, [MARGIN + 0.01])], sequences, cost, sequences).rows == {0: 2}
        assert choose([Offer(0, [MARGIN - 0.01])], sequences, cost, sequences).rows == {}


def test_calls_that_drafts_share_are_paid_once() -> None:
    """A call of 5 ms pays for four sequences and not for one; another maker's is another call."""

    def drafting(makers: str) -> set[int]:
        drafts = [Offer(i, [0.9], shared=5.0, maker=one) for i, one in enumerate(makers)]
        return set(choose(drafts, 4, linear(10.0, 0.5), 4).rows)

    assert drafting("a") == set()
    assert drafting("aaaa") == {0, 1, 2, 3}
    assert drafting("abcd") == set()


def test_cheap_rows_behind_an_expensive_one_are_found() -> None:
    """The fifth row costs as much as four plain steps, and those behind it nothing."""

    def cost(rows: int, branching: bool) -> float:
        return 10.0 if rows <= 4 else 50.0

    assert choose([Offer(0, [0.99**row for row in range(1, 32)])], 1, cost, 1).rows == {0: 32}
    assert choose([Offer(0, [0.8**row for row in range(1, 32)])], 1, cost, 1).rows == {0: 4}


def test_rows_that_could_not_pay_are_not_looked_at() -> None:
    asked: list[int] = []

    def cost(rows: int, branching: bool) -> float:
        asked.append(rows)
        return 10.0 + 2.0 * rows

    choose([Offer(0, [0.5**row for row in range(1, 33)])], 1, cost, 1)
    assert len(asked) < 9
    asked.clear()
    choose([], 8, cost, 8)
    assert len(asked) <= 2, "a step without drafts is chosen at once"


def test_a_tree_pays_for_its_mask() -> None:
    """Rows 1 to 3 are a chain; the fourth branches, and costs the whole step its mask."""
    gains = [0.9, 0.9, 0.5, 0.5]
    assert choose([Offer(0, gains, straight=3)], 1, linear(10.0, 0.1), 1).rows == {0: 3}
    assert choose([Offer(0, gains)], 1, linear(10.0, 0.1), 1).rows == {0: 5}
    assert choose([Offer(0, [0.9] * 12, straight=3)], 1, linear(10.0, 0.1), 1).rows == {0: 13}


def test_a_whole_proposal_is_taken_as_it_is_or_not_at_all() -> None:
    whole = Offer(0, [1.7], size=8)
    assert choose([whole], 1, linear(10.0, 0.2), 1).rows == {0: 9}
    assert choose([whole], 1, linear(10.0, 4.0), 1).rows == {}


def test_a_draft_that_takes_time_has_to_bring_it_in() -> None:
    def rows(price: float) -> dict[int, int]:
        return choose([Offer(0, [1.0], size=3, price=price)], 1, linear(20.0, 0.5), 1).rows

    assert rows(5.0) == {0: 4}
    assert rows(17.0) == {}
    free = choose([Offer(0, [0.4]), Offer(1, [1.0], size=3, price=30.0)], 2, linear(20.0, 1.0), 2)
    assert free.rows == {0: 2}, "one that costs too much keeps nobody from drafting"


def test_drafts_that_were_slower_than_measured_are_charged_for_it() -> None:
    gains = [0.8, 0.6]
    assert choose([Offer(0, gains)], 1, linear(10.0, 0.5), 1).rows == {0: 3}
    assert choose([Offer(0, gains, slower=2.2)], 1, linear(10.0, 0.5), 1).rows == {}


def test_rows_that_are_scored_anyway_cost_nothing() -> None:
    """Exact steps score two rows at least."""
    cost = linear(1.0, 10.0)
    assert choose([Offer(0, [0.5, 0.5])], 1, cost, 1).rows == {}
    assert choose([Offer(0, [0.5, 0.5])], 1, cost, 2, least=2).rows == {0: 2}


def test_all_requests_share_one_budget_of_rows() -> None:
    offers = [Offer(s, [0.99**row for row in range(1, 64)]) for s in range(32)]
    choice = choose(offers, 32, linear(10.0, 1e-6), 32)
    assert 200 < sum(choice.rows.values()) <= BUDGET
