"""Features of a text, kept until a head reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graftline.runtimes.feature_rows import FeatureRows


def rows(first: int, stop: int) -> Any:
    """Of slots: each has its number."""
    return np.repeat(np.arange(first, stop, dtype=np.float32)[:, None], 3, axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_slots_keep_their_features_whatever_is_added_and_forgotten(seed: int) -> None:
    random, kept = np.random.default_rng(seed), FeatureRows(3)
    handed: list[tuple[Any, Any]] = []
    for _ in range(60):
        if random.random() < 0.6:
            kept.add(rows(kept.stop, kept.stop + int(random.integers(0, 9))))
        elif len(kept):
            kept.forget(int(random.integers(0, kept.stop + 1)))
        start = int(random.integers(kept.first, kept.stop + 1))
        stop = int(random.integers(start, kept.stop + 4))
        np.testing.assert_array_equal(kept.of(start), rows(start, kept.stop))
        part = kept.of(start, stop)
        np.testing.assert_array_equal(part, rows(start, min(stop, kept.stop)))
        handed.append((part, part.copy()))
    for part, was in handed:
        np.testing.assert_array_equal(part, was)  # of what was handed out nothing is written over


def test_adding_a_row_does_not_copy_all_that_are_kept() -> None:
    kept = FeatureRows(3)
    arrays = set[int]()
    for slot in range(4096):
        kept.add(rows(slot, slot + 1))
        arrays.add(kept.of(0).__array_interface__["data"][0])
    assert len(arrays) <= 14, "an array twice as large each time"


def test_a_prompt_ends_before_its_last_token_and_a_text_begins_anew() -> None:
    kept = FeatureRows(3)
    kept.add(rows(0, 7))
    kept.cut(6)
    assert (kept.first, kept.stop) == (0, 6)
    kept.add(rows(6, 8))
    np.testing.assert_array_equal(kept.of(0), rows(0, 8))
    kept.forget(5)
    kept.restart()
    assert (kept.first, kept.stop) == (0, 0)
    kept.add(rows(0, 2))
    np.testing.assert_array_equal(kept.of(0), rows(0, 2))
