"""The tokens that a head drafts, chosen by what its host says: most of its output is few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from graftline.models.training.rows import Row
from graftline.models.training.tensor_file import Array

COVERAGE = 0.97
"""The share of the host's tokens on held-out texts that a draft vocabulary holds at least: what it
does not hold is never accepted."""
ROUND = 64
"""Ids are a multiple of this: what the kernels of a matrix product take at once."""


@dataclass(frozen=True)
class DraftVocabulary:
    """The host's ids [D] that a head drafts, rising, of a vocabulary of `size`. `coverage`: their
    share of the host's best tokens on texts by which they were counted, not ranked."""

    ids: torch.Tensor
    size: int
    coverage: float

    def __str__(self) -> str:
        return (
            f"{len(self.ids):,} of {self.size:,} tokens, which are {100 * self.coverage:.1f} % of "
            "what the host says on held-out texts"
        )


def draft_vocabulary(
    learned: Sequence[Row], held_out: Sequence[Row], size: int
) -> DraftVocabulary:
    """The likeliest tokens of the host in the `learned` texts, so many that they cover COVERAGE of
    the `held_out` ones; tokens that it never thinks of come by their ids."""
    mass = np.zeros(size)
    for row in learned:
        span = _answered(row)
        ids, scores = row.states.best[span], row.states.scores[span].astype(np.float64)
        mass += np.bincount(ids.ravel(), weights=np.exp(scores).ravel(), minlength=size)
    order = np.argsort(-mass, kind="stable")
    place = np.empty(size, np.int64)
    place[order] = np.arange(size)
    said = np.concatenate([row.states.best[_answered(row), 0] for row in held_out])
    needed = np.sort(place[said])[int(np.ceil(COVERAGE * len(said))) - 1] + 1
    count = min(-(-int(needed) // ROUND) * ROUND, size)
    ids: Array = np.sort(order[:count])
    coverage = float((place[said] < count).mean())
    return DraftVocabulary(torch.as_tensor(ids), size, coverage)


def _answered(row: Row) -> slice:
    """The positions whose next token is to be foreseen."""
    return slice(row.start - 1, len(row) - 1)
