"""same_rows tells sessions apart by what calls of several rows write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_prefix_cache import Rounding, Several
from toy_session import ToySession

from graftline.runtimes.prompt_cuts import same_rows
from graftline.runtimes.row_invariance import RowInvariance
from graftline.runtimes.session import Ints, Scores

PROMPT = np.random.default_rng(0).integers(0, 40, 24)
KNOWN = RowInvariance(False, 0.5, {}, {}, 2, None, 0.0, 1e-4)


class Stepping(ToySession):
    """Reads prompts alike however they are cut; steps write something else."""

    def score(self, tokens: Ints, *given: Any, **more: Any) -> Scores:
        scores = super().score(tokens, *given, **more)
        start = self._lengths[0]
        self._slots[0, start : start + tokens.shape[1], 1] += self.facts.vocabulary
        return scores


@pytest.mark.parametrize(
    ("kind", "rows"), [(Several, 2), (Rounding, None), (Stepping, None), (ToySession, 2)]
)
def test_what_calls_write_decides(kind: Callable[[], ToySession], rows: int | None) -> None:
    assert same_rows(kind(), PROMPT, KNOWN) == rows


def test_it_is_tried_where_rows_agree_from_some_number_on() -> None:
    for known in (replace(KNOWN, min_rows=None), replace(KNOWN, row_invariant=True)):
        session = Several()
        assert same_rows(session, PROMPT, known) is None
        assert not session.reads
    assert same_rows(ToySession(capacity=9), PROMPT, KNOWN) is None, "too small to try"
    assert same_rows(ToySession(capacity=10), PROMPT, KNOWN) == 2
