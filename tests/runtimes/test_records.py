"""Recorded acceptance agrees with the rules' own theory, and nothing exceeds the bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from misbehaviour import MisbehavingModel
from toy_session import ToySession

from graftline.recipe import Recipe, recipe
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.engine import Engine
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.study.records import Records

SAMPLING = Sampling(temperature=2.0)


@pytest.fixture(autouse=True)
def _drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(DRAFTERS, "misbehaving", MisbehavingModel)  # type: ignore[arg-type]
    return


def recorded(rule: str, shape: str, most: int = 600) -> Records:
    engine = Engine(ToySession(vocabulary=12), None, {}, recipe("plain"), None)
    one = Recipe(f"{rule} {shape}", "", "", True, (), "", "misbehaving", rule, {"shape": shape})
    records = engine.record(one, SAMPLING, most)
    for seed in range(40):
        engine.generate([[1, 2, 3]] * 10, max_new_tokens=20, temperature=2.0, seed=seed, recipe=one)
        if len(records.nodes) == most:
            break
    assert len(records.nodes) == most
    return records


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        ("point-mass", "twins"),
        ("rejection", "drawn"),
        ("rejection", "independent"),
        ("rejection", "distinct"),
        ("k-sequential", "independent"),
    ],
)
def test_acceptance_is_what_the_rule_promises(rule: str, shape: str) -> None:
    means = recorded(rule, shape).summary()
    accepted, own, bound = (means[key] for key in ("accepted", "rule", "bound"))
    assert accepted is not None
    assert own is not None
    assert bound is not None
    sigma = np.sqrt(own * (1 - own) / 600)
    assert abs(accepted - own) < 4 * sigma + 0.003
    assert 0.01 < own <= bound + 1e-6
    assert means["best"] is not None
    assert bound <= 1.0
    if rule == "point-mass":
        assert own == bound <= means["best"]


def test_a_rule_without_a_theory_is_shown_without(monkeypatch: pytest.MonkeyPatch) -> None:
    means = recorded("k-sequential", "distinct", 50).summary()
    assert means["rule"] is None
    assert means["bound"] is not None


def test_nothing_drafted_is_nothing_recorded() -> None:
    engine = Engine(ToySession(), None, {}, recipe("plain"), None)
    records = engine.record("plain", SAMPLING)
    engine.generate([1, 2], max_new_tokens=9, temperature=2.0)
    assert records.summary() == {}
