"""row_invariance tells kernels apart by how they treat rows; perplexity follows its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graftline.errors import BackendError, RequestError
from graftline.facts import DecoderFacts
from graftline.runtimes.row_invariance import SIZES, row_invariance
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.study.perplexity import HELD_OUT, perplexity

VOCABULARY = 12
FACTS = DecoderFacts(VOCABULARY, 64, 2, 4, 4, 16, 0)
Fault = Callable[[int, int, int], float]
"""fault(rows in the step, row, committed length): what is added to logit 0"""


class Counting:
    """A causal model whose logits follow from the sum of all tokens seen, with a chosen fault."""

    row_invariant, facts = False, FACTS

    def __init__(
        self,
        fault: Fault = lambda n, row, past: 0.0,
        capacity: int = 200,
        trees: bool = True,
        tree_fault: float = 0.0,
        batch_fault: float = 0.0,
    ) -> None:
        self.fault, self.capacity, self.supports_trees = fault, capacity, trees
        self.tree_fault, self.batch_fault = tree_fault, batch_fault
        self.steps: list[int] = []

    def reset(self, batch: int) -> None:
        self.seen: list[list[int]] = [[] for _ in range(batch)]

    def prefill(self, prompts: list[Ints]) -> Scores:
        for seen, prompt in zip(self.seen, prompts, strict=True):
            seen += [int(t) for t in prompt]
            assert len(seen) <= self.capacity
        last = np.stack([self.logits(sum(seen), len(seen), 1, 0) for seen in self.seen])[:, None]
        return Scores(np.zeros(last.shape[:2], np.int64), last)

    def truncate(self, lengths: list[int]) -> None:
        self.seen = [seen[:length] for seen, length in zip(self.seen, lengths, strict=True)]

    def score(
        self, tokens: Ints, depth: Ints | None = None, mask: Any = None, counts: Any = None
    ) -> Scores:
        batch, rows = tokens.shape
        self.fresh = tokens
        self.steps.append(rows)
        out = np.zeros((batch, rows, VOCABULARY), np.float32)
        for b, seen in enumerate(self.seen):
            assert len(seen) + rows <= self.capacity
            for row in range(rows):
                visible = np.tri(rows, dtype=bool)[row] if mask is None else mask[b, row]
                assert depth is None or depth[b, row] == visible.sum() - 1
                total, length = sum(seen) + int(tokens[b][visible].sum()), int(visible.sum())
                out[b, row] = self.logits(total, len(seen) + length, rows, row, len(seen))
        out[..., 0] += self.tree_fault * (mask is not None) + self.batch_fault * (batch > 1)
        return Scores(out.argmax(-1), out)

    def commit(self, paths: list[list[int]]) -> None:
        for seen, tokens, path in zip(self.seen, self.fresh, paths, strict=True):
            seen += [int(tokens[i]) for i in path]

    def logits(self, total: int, length: int, rows: int, row: int, past: int = 0) -> Floats:
        place = np.arange(VOCABULARY)
        value = 10 * np.sin(place * (1 + total) + length)
        value[0] += self.fault(rows, row, past)
        return value.astype(np.float32)


PROMPT = np.random.default_rng(0).integers(0, VOCABULARY, 24)


def measured(fault: Fault = lambda n, row, past: 0.0, **options: Any):
    return row_invariance(Counting(fault, **options), PROMPT)  # type: ignore[arg-type]


def test_rows_that_do_not_depend_on_one_another():
    found = measured()
    assert found.row_invariant
    assert (found.worst, found.min_rows) == (0.0, 1)
    assert list(found.per_rows) == list(SIZES[1:])
    assert SIZES[-1] == 64
    assert found.evidence.status == "measured"
    assert "a tree" in found.evidence.what


def test_the_last_bit_is_forgiven_and_no_more():
    found = measured(lambda n, row, past: 2e-5 * (n > 1))
    assert found.row_invariant
    assert found.worst == pytest.approx(2e-5, rel=0.2)
    assert not measured(lambda n, row, past: 1e-3 * (n > 1)).row_invariant


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
        lambda n, row, past: 0.5 * (n > 40),  # only in long steps
    ],
)
def test_rows_that_depend_on_their_company_or_place_are_never_lossless(fault: Fault):
    found = measured(fault)
    assert (found.row_invariant, found.min_rows) == (False, None)


@pytest.mark.parametrize("where", ["tree_fault", "batch_fault"])
def test_rows_of_trees_and_batches_may_be_rounded_differently(where: str):
    found = measured(**{where: 0.5})
    assert (found.row_invariant, found.min_rows) == (False, 1)
    assert "trees and batches" in found.evidence.what


def test_a_bundle_without_trees_is_measured_without_them():
    found = measured(trees=False)
    assert found.row_invariant
    assert found.tree is None
    assert "a tree" not in found.evidence.what


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_nan_logits_are_an_error_not_agreement(rows: int):
    with pytest.raises(BackendError, match=f"a step of {rows} rows gave NaN"):
        measured(lambda n, row, past: float("nan") if n == rows else 0.0)


def test_it_stays_within_the_session_and_refuses_one_too_small():
    for slots, largest in ((82, 64), (81, 35), (34, 16), (15, 8)):
        found = row_invariance(Counting(capacity=slots), PROMPT)  # type: ignore[arg-type]
        assert max(found.per_rows) == largest
        assert f"steps of 1 to {largest} rows" in found.evidence.what
    with pytest.raises(RequestError, match="got 24 tokens and 14 slots"):
        row_invariance(Counting(capacity=14), PROMPT)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="got 2 tokens"):
        row_invariance(Counting(), PROMPT[:2])  # type: ignore[arg-type]


def exact_perplexity(texts: list[Ints]) -> float:
    logs = []
    for text in texts:
        for i in range(1, len(text)):
            row = Counting().logits(int(text[:i].sum()), i, 1, 0).astype(np.float64)
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
