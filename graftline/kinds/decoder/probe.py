"""What the laws of a whole bundle run: a few sequences, and the unmodified export's logits of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Feed
from graftline.facts import DecoderFacts
from graftline.kinds.decoder.stored_rows import StoredRows
from graftline.nearness import few_rows
from graftline.passes.grafts.kv_cache import empty_caches
from graftline.passes.grafts.tree_mask import causal_mask
from graftline.passes.graph.constants import Constants
from graftline.passes.graph.ports import roles_of

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]
Reference = Callable[[Ints], Floats]
"""ids [N] -> logits [K, V] of the last K rows, nothing cached."""

LEAST_ROWS = 64
BEYOND = 8
"""Rows beyond the largest constant."""
MOST_ROWS = 2100
MOST_BYTES = 1 << 30
"""Of the reference's logits, all rows of a sequence at once."""
DEPTH = 5
"""Rows of a sequence that belong to the tree: a root, a branch of three, and the row behind it."""
SIDES = 8
"""Most rows of the tree beside its longest branch: they take slots, of which there are as many as
positions."""
SHORT = 24
"""Rows of the sequence that goes beside the main one in a batch."""
FEW_ROWS = 256
"""Sequences up to this long have a third branch."""
PREFIXES = 8
"""Lengths at which an export that answers for its last row only is run."""


@dataclass(frozen=True)
class Sample:
    """A sequence [N], and the reference's logits [K, V] of its rows `rows` [K], ascending."""

    tokens: Ints
    rows: Ints
    logits: StoredRows

    def of(self, rows: Ints) -> tuple[Ints, Floats]:
        """Which of the given rows (their places among them) the reference answered, and how."""
        known = np.isin(rows, self.rows)
        return np.flatnonzero(known), self.logits.at(np.searchsorted(self.rows, rows[known]))


@dataclass(frozen=True)
class Probe:
    """`main`, and `branches` that leave it after row `fork`; `other` goes beside it in a batch."""

    main: Sample
    branches: tuple[Sample, ...]
    other: Sample
    why: str
    """How long the sequences are, and what that leaves out."""

    @property
    def fork(self) -> int:
        """The last row that all branches have in common: the root of their tree."""
        return max(len(self.main.tokens) - DEPTH, 0)


def make_probe(
    reference: Reference, found: Constants, facts: DecoderFacts, capacity: int = MOST_ROWS
) -> Probe:
    """Sequences longer than every constant of the graph, with every id tokens are compared with.

    Raises LawBroken where the reference gives numbers that are not finite, or the same logits
    whatever the token, which nothing could be compared with.
    """
    length, why = _length(found, facts, capacity)
    random = np.random.default_rng(2)
    main = _main(found, facts, length, random)
    others: list[Ints] = []
    fork = max(length - DEPTH, 0)
    for number in range(2 if length <= FEW_ROWS else 1):
        branch = main.copy()
        branch[fork + 1 + number :] = random.integers(0, facts.vocabulary, DEPTH - 1 - number)
        others.append(branch)
    short = random.integers(0, facts.vocabulary, min(SHORT, length), dtype=np.int64)
    first = _sample(reference, main, 0)
    _check(first, facts.vocabulary)
    return Probe(
        first,
        tuple(_sample(reference, branch, fork) for branch in others),
        _sample(reference, short, 0),
        why,
    )


def make_tokens(found: Constants, facts: DecoderFacts, capacity: int = MOST_ROWS) -> Ints:
    """The main sequence [N] alone, of a host whose export cannot be run whole."""
    length, _ = _length(found, facts, capacity)
    return _main(found, facts, length, np.random.default_rng(2))


def _main(found: Constants, facts: DecoderFacts, length: int, random: np.random.Generator) -> Ints:
    main = random.integers(0, facts.vocabulary, length, dtype=np.int64)
    special = [t for t in sorted(found.tokens) if 0 <= t < facts.vocabulary][: length // 4]
    places = np.linspace(1, length - 1, len(special), dtype=np.int64)
    main[places] = special
    return main


def _length(found: Constants, facts: DecoderFacts, capacity: int) -> tuple[int, str]:
    end = facts.positions or 1 << 20
    bounds = [max(end - SIDES, 1), MOST_ROWS, capacity]
    bounds.append(max(LEAST_ROWS, MOST_BYTES // (4 * max(facts.vocabulary, 1))))
    bounds += [rows for rows in found.tables if rows != facts.vocabulary]
    most = min(bounds)
    reached = [n for n in found.distances if n < most]
    length = min(most, max(LEAST_ROWS, *(n + BEYOND for n in reached), 0))
    beyond = sorted(n for n in found.distances if most <= n < end)
    told = f"; constants not reached: {', '.join(map(str, beyond))}" if beyond else ""
    return length, f"{length} rows{told}"


def _sample(reference: Reference, tokens: Ints, first: int) -> Sample:
    """The reference's logits of the rows from `first` on: of those it gives."""
    logits = reference(tokens)
    count, given = len(tokens), len(logits)
    if given > 1 or count == 1:
        rows = np.arange(max(first, count - given), count)
        return Sample(tokens, rows, StoredRows(logits[-len(rows) :]))
    start = first if first else min(4, count) - 1
    lengths = np.unique(np.linspace(start + 1, count, PREFIXES, dtype=np.int64))
    parts = [reference(tokens[:n])[-1:] for n in lengths[:-1]] + [logits]
    return Sample(tokens, lengths - 1, StoredRows(np.concatenate(parts)))


def _check(sample: Sample, vocabulary: int) -> None:
    first: Any = None
    same = True
    for part in few_rows(len(sample.rows), vocabulary):
        logits = sample.logits.at(np.arange(part.start, part.stop))
        if not np.isfinite(logits).any(axis=-1).all() or np.isnan(logits).any():
            raise LawBroken("export", "whole", "logits", "the export's own are not finite")
        first = logits[0, 0] if first is None else first
        same = same and bool((logits == first).all())
    if same:
        raise LawBroken(
            "export", "whole", "logits", "the export's own are all the same: nothing to compare"
        )


def first_rows(canonical: ir.Model, tokens: Ints) -> Feed:
    """Tokens [1, N] as the first rows of a sequence, the logits of all of them asked for."""
    every, start = np.arange(tokens.shape[1])[None], np.zeros(1, np.int64)
    slots = tokens.shape[1] + 2
    mask = causal_mask(start, tokens.shape[1], slots)
    given = {"tokens": tokens, "positions": every, "rows": every, "write_index": start}
    return roles_of(canonical).feed(**given, mask=mask) | empty_caches(canonical, 1, slots)
