"""The best number of rows, found without looking at those that cannot pay."""

from __future__ import annotations

import numpy as np
import pytest
from graftline.runtimes.control.offers import Offer, best_rows, least_slopes
from graftline.runtimes.control.text_fit import TextFit

from graftline.runtimes.control.evidence import Evidence
from graftline.tree import Tree


def offer(chances: list[float]) -> Offer:
    tree = Tree.chain(list(range(len(chances))))
    return Offer(1, tree, Evidence(chances, horizon=48, weight=20), TextFit(), [])


def falling(rng: np.random.Generator, rows: int) -> list[float]:
    return [1.0, *sorted(rng.random(rows - 1).tolist(), reverse=True)]


@pytest.mark.parametrize("seed", range(40))
def test_no_row_that_was_not_looked_at_would_have_been_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    offers = [offer(falling(rng, int(rng.integers(2, 40)))) for _ in range(rng.integers(1, 4))]
    last = max(one.size for one in offers)
    steps = (10.0 + rng.exponential(4.0, last).cumsum()).tolist()
    dearer, extra = float(rng.uniform(1, 2)), float(rng.exponential(1.0))
    slopes = least_slopes(steps)
    best, far = best_rows(offers, len(offers), steps, slopes, 1.1, dearer, extra)

    def worth(rows: int) -> float:
        tokens = len(offers) + sum(one.hoped(rows) for one in offers)
        return tokens / (steps[rows - 1] * dearer + extra)

    plain = len(offers) / steps[0] * 1.1
    better = [rows for rows in range(2, last + 1) if worth(rows) > plain]
    assert best == (max(better, key=worth) if better else 1)
    assert best <= far <= last


def test_rows_that_could_not_pay_are_not_looked_at() -> None:
    steps = [10.0 + 2.0 * row for row in range(32)]
    _, far = best_rows([offer([0.5**row for row in range(32)])], 1, steps, least_slopes(steps), 1.2)
    assert far < 6


def test_cheap_rows_behind_a_dear_one_are_looked_at() -> None:
    """The fifth row costs as much as four plain steps, and those behind it nothing."""
    steps = [10.0] * 4 + [50.0] * 28
    sure = [0.99**row for row in range(32)]
    assert best_rows([offer(sure)], 1, steps, least_slopes(steps), 1.0)[0] == 32


def test_least_slopes_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    steps = rng.exponential(3.0, 30).cumsum().tolist()
    told = [
        min((steps[k] - steps[r]) / (k - r) for k in range(r + 1, len(steps)))
        for r in range(len(steps) - 1)
    ]
    assert least_slopes(steps) == pytest.approx(told)
    assert least_slopes([1.0]) == []
