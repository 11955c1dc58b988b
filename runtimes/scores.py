"""Scores whose widest arrays stay on the device until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np

from graftline.errors import BackendError
from graftline.runtimes.session import Floats, Ints, Scores

Read = Callable[[], Floats]


class DeviceScores(Scores):
    """`logits` and `hidden` are copied when they are first read, which must be before the next call
    of the session (BackendError after it). Most rules read the few integers beside them only."""

    def __init__(
        self,
        argmax: Ints,
        topk_ids: Ints | None,
        topk_logits: Floats | None,
        top_gap: Floats | None,
        read_logits: Read,
        read_hidden: Callable[[], Floats | None],
    ) -> None:
        given = {
            "argmax": argmax, "topk_ids": topk_ids, "topk_logits": topk_logits, "top_gap": top_gap,
            "_read_logits": read_logits, "_read_hidden": read_hidden,
        }  # fmt: skip
        for name, value in given.items():
            object.__setattr__(self, name, value)  # Scores is frozen

    _read_logits: Read
    _read_hidden: Callable[[], Floats | None]

    @cached_property
    def logits(self) -> Floats:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[B, N, V]."""
        return self._read_logits()

    @cached_property
    def hidden(self) -> Floats | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[B, N, H], or None where the graph brings none out."""
        return self._read_hidden()


def copied(scores: Scores) -> Scores:
    """All of it on the host, for good."""
    parts = (getattr(scores, f.name) for f in fields(Scores))
    return Scores(*(None if p is None else p.copy() for p in parts))  # type: ignore[arg-type]


def one_row(scores: Scores, row: int, node: int) -> Scores:
    """One row of them (B = N = 1), on the host and for good."""
    parts = (getattr(scores, f.name) for f in fields(Scores))
    kept = (None if p is None else p[row : row + 1, node : node + 1].copy() for p in parts)
    return Scores(*kept)  # type: ignore[arg-type]


def of_sequence(scores: Scores, row: int) -> Scores:
    """Those of one sequence (B = 1), where and as long as the whole is."""
    rows = slice(row, row + 1)

    def part(values: Any) -> Any:
        return None if values is None else values[rows]

    few = (part(scores.argmax), part(scores.topk_ids), part(scores.topk_logits))
    if isinstance(scores, DeviceScores):
        later = lambda: scores.logits[rows], lambda: part(scores.hidden)
        return DeviceScores(*few, part(scores.top_gap), *later)
    return Scores(few[0], scores.logits[rows], *few[1:], part(scores.top_gap), part(scores.hidden))


def joined(rows: list[Scores], axis: int = 0) -> Scores:
    """Scores of several calls as one, along an axis."""

    def join(name: str) -> Any:
        parts = [getattr(r, name) for r in rows]
        return None if parts[0] is None else np.concatenate(parts, axis)

    return Scores(*(join(f.name) for f in fields(Scores)))


def check_numbers(scores: Scores, row: int) -> None:
    """Raises BackendError where the scores of a sequence's first row are not numbers: whatever was
    chosen from them would be no answer of the model."""
    if scores.topk_logits is not None:
        value = scores.topk_logits[row, 0, 0]
    elif scores.top_gap is not None:
        value = scores.top_gap[row, 0]
    else:
        value = scores.logits[row, 0, scores.argmax[row, 0]]
    if value != value:  # NaN
        raise BackendError(
            "the model's scores are not numbers (NaN); if this is a fp16 model, rebuild it with "
            "--dtype fp32"
        )
