"""Does a row's result depend on how many rows go with it, or on where among them it stands?

A kernel may treat one row unlike several; where activations are rounded to 8 bits, a difference in
the last bit of one op grows to tenths of a logit. So it is measured, for the backend at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.errors import BackendError, RequestError
from graftline.runtimes.session import Floats, Ints, Session

SIZES = (1, 2, 5, 8, 16)
"""Rows per step that are tried: a row alone, and with 1, 4, 7 and 15 others."""
TOLERANCE = 5e-4
"""Largest difference of a logit called equal, relative to the largest absolute logit."""
CUTS = 3
"""How many lengths of the prompt are tried: kernels tile by length too."""


@dataclass(frozen=True)
class RowInvariance:
    """`per_rows[n]`: most that row 0 among n rows differs from row 0 alone; `worst` is their most.

    `per_least[m]`: most that any row of a chain of m rows or more differs from the same row reached
    one by one in steps of m rows, relative to the largest logit. `min_rows`: the smallest m for
    which that is within TOLERANCE, so that steps padded to m rows agree; None: no m does, and
    nothing makes this backend lossless. `row_invariant`: min_rows is 1.
    """

    row_invariant: bool
    worst: float
    per_rows: dict[int, float]
    per_least: dict[int, float]
    min_rows: int | None


def row_invariance(session: Session, prompt: Ints) -> RowInvariance:
    """Measure a session after several lengths of a prompt, which also continues it, repeated.

    The session's caches are lost. Raises RequestError for a prompt of under three tokens, and for a
    session too small for the rows that are tried; BackendError for NaN logits.
    """
    beyond = SIZES[-1] + SIZES[-2] - 1
    longest = min(len(prompt), session.capacity - beyond)
    if longest < 3:
        raise RequestError(
            f"row_invariance takes 3 tokens or more and {3 + beyond} slots; "
            f"got {len(prompt)} tokens and {session.capacity} slots"
        )
    prompt = np.resize(prompt, longest + beyond)
    cuts = sorted({int(c) for c in np.linspace(3, longest, CUTS)})
    chains = {cut: _chains(session, prompt, cut) for cut in cuts}
    per_rows = {
        n: max(float(np.abs(c[n][0] - c[1][0]).max()) for c in chains.values()) for n in SIZES[1:]
    }
    per_least: dict[int, float] = {}
    least: int | None = None
    for rows in SIZES[:-1]:
        gaps = [_gap(session, prompt, cut, chain, rows) for cut, chain in chains.items()]
        per_least[rows] = float(np.max(gaps))
        if per_least[rows] <= TOLERANCE:
            least = rows
            break
    return RowInvariance(least == 1, max(per_rows.values()), per_rows, per_least, least)


def _fill(session: Session, prompt: Ints, cut: int) -> None:
    session.reset(1)
    session.prefill([prompt[:cut]])


def _chains(session: Session, prompt: Ints, cut: int) -> dict[int, Floats]:
    """Logits [n, V] of the n rows after `cut`, scored in one step, for every n of SIZES."""
    _fill(session, prompt, cut)
    return {n: _logits(session, prompt[cut : cut + n]) for n in SIZES}


def _logits(session: Session, tokens: Ints) -> Floats:
    """Logits [n, V] of one step. NaN would pass every comparison, so it is an error."""
    logits = session.score(tokens[None]).logits[0].copy()
    if np.isnan(logits).any():
        raise BackendError(f"row_invariance: a step of {len(tokens)} rows gave NaN logits")
    return logits


def _gap(session: Session, prompt: Ints, cut: int, chains: dict[int, Floats], rows: int) -> float:
    """Largest relative difference of any row in chains of `rows` or more from the same row as row 0
    of a step of `rows`, the earlier ones committed.
    """
    _fill(session, prompt, cut)
    worst = 0.0
    for j in range(SIZES[-1]):
        start = cut + j
        alone = _logits(session, prompt[start : start + rows])[0]
        session.commit([[0]])
        scale = max(float(np.abs(alone).max()), 1e-30)
        for n, chain in chains.items():
            if n >= rows and j < n:
                worst = max(worst, float(np.abs(chain[j] - alone).max()) / scale)
    return worst
