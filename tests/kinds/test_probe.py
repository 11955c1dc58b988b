"""Sequences that a proof compares pass every constant of the host, and limits follow its sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graftline.errors import LawBroken
from graftline.facts import DecoderFacts
from graftline.kinds.decoder.probe import make_probe
from graftline.nearness import LEAST, gaps, limit, spread_gaps
from graftline.passes.graph.constants import Constants

FACTS = DecoderFacts(50, 64, 2, 4, 4, 16, 0)


def answer(tokens: Any) -> Any:
    return np.cos(tokens[:, None] * np.arange(1, 51) + np.arange(len(tokens))[:, None])


def test_sequences_pass_every_constant_and_hold_every_token() -> None:
    probe = make_probe(answer, Constants({40, 90, 3000}, {7, 49, 50}), FACTS)
    assert len(probe.main.tokens) == 98
    assert {7, 49} <= set(probe.main.tokens.tolist())
    assert "constants not reached: 3000" in probe.why
    assert all(len(b.tokens) == 98 for b in probe.branches)
    bounded = make_probe(answer, Constants({40}, set(), {30}), FACTS)
    assert len(bounded.main.tokens) == 30


def test_an_export_of_last_rows_is_run_at_several_lengths() -> None:
    probe = make_probe(lambda tokens: answer(tokens)[-1:], Constants(), FACTS)
    assert len(probe.main.rows) == 8
    rows = np.asarray([62, 63])
    places, logits = probe.main.of(rows)
    assert places.tolist() == [1]
    np.testing.assert_array_equal(logits, answer(probe.main.tokens)[63:])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_to_compare_is_an_error(value: float) -> None:
    with pytest.raises(LawBroken, match="the export's own are"):
        make_probe(lambda tokens: np.full((len(tokens), 50), value), Constants(), FACTS)


def test_what_is_not_finite_is_far() -> None:
    rows = np.asarray([[1.0, -2.0, -1e30], [1.0, 2.0, -np.inf]])
    assert gaps(rows, rows).tolist() == [0, 0]
    for bad in (np.nan, np.inf, -np.inf):
        other = rows.copy()
        other[0, 1] = bad
        assert gaps(other, rows)[0] == np.inf
        assert gaps(rows, other)[0] == np.inf
        assert not spread_gaps(other, rows)[0] <= 1.5
    assert gaps(rows * 1.5, rows)[0] == pytest.approx(0.5)
    assert spread_gaps(np.zeros_like(rows) + 3, np.arange(6.0).reshape(2, 3))[0] == 1


def test_limits_follow_the_size_of_the_sums() -> None:
    wide, deep = (replace(FACTS, hidden=2304, layers=layers) for layers in (26, 52))
    assert limit("fp32", FACTS) == LEAST < limit("fp32", wide) < limit("fp32", deep) < 3e-4
    assert limit("fp32", FACTS) < limit("fp16", FACTS) < limit("bf16", FACTS) < 0.1
