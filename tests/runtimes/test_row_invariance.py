"""row_invariance tells kernels apart by how they treat rows; perplexity follows its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graftline.errors import BackendError, RequestError
from graftline.runtimes.row_invariance import SIZES, row_invariance
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.study.perplexity import HELD_OUT, perplexity

VOCABULARY = 12
Fault = Callable[[int, int, int], float]
"""fault(rows in the step, row, committed length): what is added to logit 0"""


class Counting:
    """A causal model whose logits follow from the sum of all tokens seen, with a chosen fault."""

    row_invariant = False

    def __init__(self, fault: Fault = lambda n, row, past: 0.0, capacity: int = 200) -> None:
        self.fault, self.capacity = fault, capacity
        self.steps: list[int] = []

    def reset(self, batch: int) -> None:
        assert batch == 1
        self.seen: list[int] = []

    def prefill(self, prompts: list[Ints]) -> Scores:
        self.seen += [int(t) for t in prompts[0]]
        return Scores(np.zeros((1, 1), np.int64), self.logits(1, 0)[None, None])

    def score(self, tokens: Ints, depth: Ints | None = None, mask: None = None) -> Scores:
        rows, self.fresh = tokens.shape[1], [int(t) for t in tokens[0]]
        assert len(self.seen) + rows <= self.capacity
        self.steps.append(rows)
        base, out = list(self.seen), []
        for row, token in enumerate(self.fresh):
            self.seen.append(token)
            out.append(self.logits(rows, row, len(base)))
        self.seen = base
        logits = np.stack(out)[None]
        return Scores(logits.argmax(-1), logits)

    def commit(self, paths: list[list[int]]) -> None:
        self.seen += [self.fresh[i] for i in paths[0]]

    def logits(self, rows: int, row: int, past: int = 0) -> Floats:
        place = np.arange(VOCABULARY)
        value = 10 * np.sin(place * (1 + sum(self.seen)) + len(self.seen))
        value[0] += self.fault(rows, row, past)
        return value.astype(np.float32)


PROMPT = np.random.default_rng(0).integers(0, VOCABULARY, 24)


def measured(fault: Fault = lambda n, row, past: 0.0):
    return row_invariance(Counting(fault), PROMPT)  # type: ignore[arg-type]


def test_rows_that_do_not_depend_on_one_another():
    found = measured()
    assert found.row_invariant
    assert (found.worst, found.min_rows) == (0.0, 1)
    assert list(found.per_rows) == list(SIZES[1:])


def test_the_last_bit_is_forgiven():
    found = measured(lambda n, row, past: 1e-4 * (n > 1))
    assert found.row_invariant
    assert found.worst == pytest.approx(1e-4, rel=0.1)


def test_a_kernel_for_single_rows():
    found = measured(lambda n, row, past: 0.5 * (n == 1))
    assert not found.row_invariant
    assert found.min_rows == 2
    assert found.worst == pytest.approx(0.5, rel=1e-3)


def test_a_kernel_for_few_rows():
    found = measured(lambda n, row, past: 0.5 * (n < 4))
    assert (found.row_invariant, found.min_rows) == (False, 5)


@pytest.mark.parametrize(
    "fault",
    [
        lambda n, row, past: 0.1 * n,  # a scale shared by all rows
        lambda n, row, past: 0.5 * (row % 4 == 3),  # a tile: row 0 alone never shows it
        lambda n, row, past: 0.5 * (past > 20 and n % 3 == 2),  # only behind a long prompt
    ],
)
def test_rows_that_depend_on_their_company_or_place_are_never_lossless(fault: Fault):
    found = measured(fault)
    assert (found.row_invariant, found.min_rows) == (False, None)


@pytest.mark.parametrize("rows", [1, 8, 16])
def test_nan_logits_are_an_error_not_agreement(rows: int):
    with pytest.raises(BackendError, match=f"a step of {rows} rows gave NaN"):
        measured(lambda n, row, past: float("nan") if n == rows else 0.0)


def test_it_stays_within_the_session_and_refuses_one_too_small():
    row_invariance(Counting(capacity=26), PROMPT)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="got 24 tokens and 25 slots"):
        row_invariance(Counting(capacity=25), PROMPT)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="got 2 tokens"):
        row_invariance(Counting(), PROMPT[:2])  # type: ignore[arg-type]


def exact_perplexity(texts: list[Ints]) -> float:
    logs = []
    for text in texts:
        for i in range(1, len(text)):
            session = Counting()
            session.seen = [int(t) for t in text[:i]]
            row = session.logits(1, 0).astype(np.float64)
            logs.append(row[text[i]] - np.log(np.exp(row).sum()))
    return float(np.exp(-np.mean(logs)))


@pytest.mark.parametrize("chunk", [1, 7, 23, 64])
def test_perplexity_is_its_definition_whatever_the_chunk(chunk: int):
    texts = [PROMPT, PROMPT[:5], PROMPT[3:11]]
    session = Counting()
    got = perplexity(session, texts, chunk)  # type: ignore[arg-type]
    assert got == pytest.approx(exact_perplexity(texts), rel=1e-6)
    assert max(session.steps) <= chunk


def test_perplexity_refuses_what_it_cannot_score():
    for texts in ([PROMPT[:1]], [np.zeros(201, np.int64)], []):
        with pytest.raises(RequestError):
            perplexity(Counting(), texts)  # type: ignore[arg-type]


def test_the_held_out_text_is_there():
    assert 1200 < len(HELD_OUT.read_text(encoding="utf-8").split()) < 1700
