"""Step costs: in turn near and far, never falling, whatever the machine does meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_session import ToySession

from graftline.errors import BundleError
from graftline.runtimes import step_times
from graftline.runtimes.control.costs import FAR, NEAR, Costs
from graftline.runtimes.step_times import measure_costs


class Timed(ToySession):
    """A step of q rows in all takes 10 + q and a unit for every 256 positions of any sequence, on a
    clock that all sessions share."""

    def __init__(self, clock: list[float], drift: float = 0.0) -> None:
        super().__init__(capacity=2048)
        self.clock, self.drift = clock, drift

    def score(self, *args: Any, **more: Any) -> Any:
        taken = 10.0 + np.asarray(args[0]).size + float(self.lengths.sum()) / NEAR
        self.clock[0] += taken * (1.0 + self.drift * self.clock[0])
        return super().score(*args, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: now[0] / 1e3)
    return now


@pytest.mark.parametrize("beside", [False, True])
def test_costs_are_what_steps_take(clock: list[float], beside: bool) -> None:
    session = Timed(clock)
    session.most_sequences = 8  # the memory of so many is there
    costs = Costs.from_json(measure_costs(session, (lambda _: Timed(clock)) if beside else None))
    assert costs.of(1) == pytest.approx(12.0)
    assert costs.of(8) == pytest.approx(19.0)
    assert costs.of(1, past=FAR) == pytest.approx(15.0)
    assert costs.of(32, past=FAR) == pytest.approx(46.0)
    assert costs.of(8, batch=4) == pytest.approx(22.0)
    assert costs.of(8, batch=8) == pytest.approx(26.0)
    assert costs.of(21, batch=6) == pytest.approx(37.0), "between what was measured"
    assert costs.of(12, batch=12) == pytest.approx(34.0), "and beyond it"
    assert costs.of(8, past=FAR, batch=4) == pytest.approx(34.0)


def test_batches_are_not_measured_where_their_memory_is_not_there(clock: list[float]) -> None:
    found = measure_costs(Timed(clock))
    assert found.keys() == {"chain", "tree", "far"}
    costs = Costs.from_json(found)
    assert costs.of(8, batch=4) == pytest.approx(22.0), "every sequence reads its own positions"
    assert costs.of(8, past=FAR, batch=4) == pytest.approx(34.0)


def test_tables_of_another_form_are_refused() -> None:
    with pytest.raises(BundleError, match=r"far.*measure again"):
        Costs.from_json({"chain": {"1": 1.0}, "tree": {}, "far_chain": {}, "far_tree": {}})


@pytest.mark.parametrize("table", ["chain", "tree", "far", "4"])
@pytest.mark.parametrize("time", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused_in_every_table(table: str, time: float) -> None:
    tables = {name: {"1": 1.0, "8": 2.0} for name in ("chain", "tree", "far", "4")}
    Costs.from_json(tables)
    tables[table]["8"] = time
    with pytest.raises(BundleError, match="positive times; measure again"):
        Costs.from_json(tables)


def test_a_machine_that_slows_down_meanwhile_makes_no_long_past_dear(clock: list[float]) -> None:
    """One after the other, all that the machine lost in between looked like the price of a long
    past: 9 ms over 768 positions, where it is 2 (SmolLM2 in fp32)."""
    drift = 2e-5  # twice as slow at the end
    apart = Costs.from_json(measure_costs(Timed(clock, drift)))
    clock[0] = 0.0
    beside = Costs.from_json(measure_costs(Timed(clock, drift), lambda _: Timed(clock, drift)))
    true = 15.0 / 12.0
    assert beside.of(1, past=FAR) / beside.of(1) == pytest.approx(true, rel=0.05)
    assert apart.of(1, past=FAR) / apart.of(1) > 1.15 * true


class Disturbed(Timed):
    """Something else takes 40 ms of the processor now and then: of a call as often as it is long,
    and of all calls of three rows."""

    def score(self, *args: Any, **more: Any) -> Any:
        began = self.clock[0]
        scores = super().score(*args, **more)
        hit = int(self.clock[0] / 100.0) > int(began / 100.0)
        self.clock[0] += 40.0 * (hit or np.asarray(args[0]).size == 3)
        return scores


def test_a_busy_machine_makes_no_size_expensive(clock: list[float]) -> None:
    """A step of 64 rows is nearly always hit, and what is hit more often than not by chance, as
    three rows here, costs no more than what is larger."""
    costs = Costs.from_json(measure_costs(Disturbed(clock)))
    assert costs.of(1) == pytest.approx(12.0)
    assert costs.of(8) == pytest.approx(19.0)
    assert costs.of(32) == pytest.approx(43.0)
    assert costs.of(3) == costs.of(4) == pytest.approx(15.0)


def test_only_what_fits_is_measured(clock: list[float]) -> None:
    session = Timed(clock)
    session.capacity = 12
    session.supports_trees = False
    costs = Costs.from_json(measure_costs(session))
    assert max(costs.chain) == 6
    assert not costs.far
    assert costs.of(4, branching=True) == costs.of(4), "a tree costs what a chain does"
