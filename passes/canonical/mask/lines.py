"""What rows of values are: straight lines in position and length, or steps in the distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graftline.evaluate import Array
from graftline.passes.graph.seen import is_float

Rows = dict[int, Array]
"""By length: [heads or 1, positions or 1], or [heads or 1, N, N]."""
_STEPS = 8


@dataclass(frozen=True)
class Line:
    """start + slope * position + change * length, each [heads or 1]."""

    start: Array
    slope: Array
    change: Array
    dtype: np.dtype[np.generic]


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iub" or is_float(dtype)


def line_of(rows: Rows, tolerance: float) -> Line | None:
    """The line all rows lie on, within `tolerance` of their largest value, or None."""
    lengths = sorted(rows)
    last = rows[lengths[-1]]
    if any(r.shape[0] != last.shape[0] for r in rows.values()) or not _is_number(last.dtype):
        return None
    wide = {n: rows[n].astype(np.float64) for n in lengths}
    flat = np.zeros(last.shape[0])
    if not all(np.isfinite(w).all() for w in wide.values()):
        same = all((rows[n] == last[:, :1]).all() for n in lengths)
        return Line(last[:, 0], flat, flat, last.dtype) if same else None
    long, short = wide[lengths[-1]], wide[lengths[0]]
    change = (long[:, 0] - short[:, 0]) / max(lengths[-1] - lengths[0], 1)
    slope = flat
    if long.shape[1] > 1:
        end = long.shape[1] - 1
        slope = (long[:, end] - long[:, 0]) / end
    start = long[:, 0] - change * lengths[-1]
    if last.dtype.kind == "b" and (slope.any() or change.any()):
        return None
    for n in lengths:
        expected = (start + change * n)[:, None] + slope[:, None] * np.arange(wide[n].shape[1])
        limit = tolerance * max(1.0, float(np.abs(wide[n]).max(initial=0.0)))
        if not (np.abs(wide[n] - expected) <= limit).all():
            return None
    return Line(start, slope, change, last.dtype)


def steps_of(squares: Rows) -> list[tuple[int, Array]] | None:
    """(first distance q - k, values [heads]) of each step, ascending, where all squares
    [heads, N, N] are steps in the distance; else None. The first step has no lower bound."""
    longest = squares[max(squares)]
    size = longest.shape[1]
    if longest.shape[2] != size:
        return None
    # by distance -(N - 1) .. N - 1: the first row from its end, then the first column
    line = np.concatenate([longest[:, 0, ::-1], longest[:, 1:, 0]], axis=1)
    for square in squares.values():
        n = square.shape[1]
        index = np.arange(n)[:, None] - np.arange(n)[None] + size - 1
        if square.shape != (len(line), n, n) or not (square == line[:, index]).all():
            return None
    changes = np.flatnonzero((line[:, 1:] != line[:, :-1]).any(axis=0)) + 1
    if len(changes) > _STEPS:
        return None
    return [(int(at) - (size - 1), line[:, at]) for at in (0, *changes)]
