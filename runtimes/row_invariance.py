"""Does a row's result depend on how many rows go with it, or on where among them it stands?

A kernel may treat one row unlike several; where activations are rounded to 8 bits, a difference in
the last bit of one op grows to tenths of a logit. So it is measured, for the backend at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.errors import BackendError, RequestError
from graftline.law import Evidence
from graftline.nearness import gaps, limit
from graftline.runtimes.session import Bools, Floats, Ints, Session

SIZES = (1, 2, 3, 5, 8, 16, 35, 64)
"""Rows per step that are tried, as far as the session has room for them."""
SHORTEST = 3
"""Fewest tokens before the rows that are tried."""
LEASTS = (1, 2, 5, 8, 16)
"""Fewest rows per step that are tried as a remedy where rows are not all rounded alike."""
PLACES = (0, 1, 2, 3, 4, 7, 15, 34, 63)
"""Rows of a step that are compared with the same row as the first of a step."""
CUTS = 2
"""How many lengths of the prompt are tried: kernels tile by length too."""
TREE = 12
"""Rows of the tree that is tried: two branches, row by row in turn."""


@dataclass(frozen=True)
class RowInvariance:
    """`per_rows[n]`: most that row 0 among n rows differs from row 0 alone; `worst` is their most.

    `per_least[m]`: most that a row of a chain of m rows or more differs from the same row as the
    first of a step of m rows, relative to the largest logit. `min_rows`: the smallest m for which
    that is within `limit`, so that steps padded to m rows agree; None: no m does, and nothing makes
    this backend lossless. `tree` and `batch`: the same of a row in a tree and of a row beside
    another sequence's, against a chain of as many rows; None where there are no trees.
    `row_invariant`: min_rows is 1, and trees and batches are within the limit too.
    """

    row_invariant: bool
    worst: float
    per_rows: dict[int, float]
    per_least: dict[int, float]
    min_rows: int | None
    tree: float | None
    batch: float
    limit: float

    @property
    def evidence(self) -> Evidence:
        """What the law `row-invariant` says of it."""
        least = min(self.per_least, key=lambda rows: self.per_least[rows])
        value = max(self.per_least[least], self.tree or 0.0, self.batch)
        if self.row_invariant:
            words = "rows do not depend on one another"
        elif self.min_rows == 1:
            words = "rows of chains agree; rows of trees and batches are rounded differently"
        elif self.min_rows:
            words = f"one row alone is rounded unlike several; {self.min_rows} rows or more agree"
        else:
            words = "a row's result depends on the rows beside it: never lossless"
        tree = ", a tree" if self.tree is not None else ""
        tried = f"steps of 1 to {max(self.per_rows)} rows{tree}, a batch of two"
        return Evidence(f"{words} ({tried})", value, self.limit, "measured")


def row_invariance(session: Session, prompt: Ints) -> RowInvariance:
    """Measure a session after several lengths of a prompt, which also continues it, repeated.

    The session's caches are lost. Raises RequestError for a prompt of under three tokens, and for a
    session too small for the rows that are tried; BackendError for logits that are not finite.
    """
    if len(prompt) < SHORTEST or session.capacity < SHORTEST + TREE:
        raise RequestError(
            f"row_invariance takes {SHORTEST} tokens or more and {SHORTEST + TREE} slots; "
            f"got {len(prompt)} tokens and {session.capacity} slots"
        )
    leasts = [m for m in LEASTS if SHORTEST + 2 * m - 1 <= session.capacity]
    room = session.capacity - leasts[-1] + 1
    sizes = tuple(n for n in SIZES if SHORTEST + n <= room)
    longest = min(len(prompt), room - sizes[-1])
    prompt = np.resize(prompt, longest + sizes[-1])
    most = limit("fp32", session.facts)
    cuts = sorted({int(c) for c in np.linspace(3, longest, CUTS)})
    chains: dict[int, dict[int, Floats]] = {}
    between = 0.0
    for cut in cuts:
        chains[cut], apart = _chains(session, prompt, cut, sizes)
        between = max(between, apart)
    per_rows = {
        n: max(float(np.abs(c[n][0] - c[1][0]).max()) for c in chains.values()) for n in sizes[1:]
    }
    per_least: dict[int, float] = {}
    least: int | None = None
    for rows in leasts:
        apart = [_gap(session, prompt, cut, chain, rows) for cut, chain in chains.items()]
        per_least[rows] = max(*apart, between if rows == 1 else 0.0)
        if per_least[rows] <= most:
            least = rows
            break
    tree = _tree(session, prompt, longest) if session.supports_trees else None
    batch = _batch(session, prompt, longest)
    alike = least == 1 and max(tree or 0.0, batch) <= most
    worst = max(per_rows.values())
    return RowInvariance(alike, worst, per_rows, per_least, least, tree, batch, most)


def _fill(session: Session, prompt: Ints, cut: int) -> None:
    session.reset(1)
    session.prefill([prompt[:cut]])


def _chains(
    session: Session, prompt: Ints, cut: int, sizes: tuple[int, ...]
) -> tuple[dict[int, Floats], float]:
    """For every n of `sizes`: logits of the rows at PLACES among the n rows after `cut`, scored in
    one step. And the largest relative difference of any row from the same row in the longest."""
    _fill(session, prompt, cut)
    longest = _logits(session, prompt[cut : cut + sizes[-1]])
    kept = {sizes[-1]: longest[_places(len(longest))]}
    between = 0.0
    for n in sizes[:-1]:
        rows = _logits(session, prompt[cut : cut + n])
        between = max(between, float(gaps(rows, longest[:n]).max()))
        kept[n] = rows[_places(n)]
    return kept, between


def _places(rows: int) -> list[int]:
    """Those of PLACES that a chain of `rows` has."""
    return [place for place in PLACES if place < rows]


def _logits(
    session: Session, tokens: Ints, depth: Ints | None = None, mask: Bools | None = None
) -> Floats:
    """Logits [n, V] of one step. NaN would pass every comparison, so it is an error."""
    given = (None if depth is None else depth[None], None if mask is None else mask[None])
    logits = session.score(tokens[None], *given).logits[0].copy()
    if not np.isfinite(logits).any(axis=-1).all() or np.isnan(logits).any():
        raise BackendError(f"row_invariance: a step of {len(tokens)} rows gave NaN logits")
    return logits


def _gap(session: Session, prompt: Ints, cut: int, chains: dict[int, Floats], rows: int) -> float:
    """Largest relative difference of the rows at PLACES, all that `chains` hold, in chains of
    `rows` or more from the same row as row 0 of a step of `rows`, behind the earlier ones.
    """
    session.reset(1)
    session.prefill([prompt])
    worst = 0.0
    for number, place in reversed(list(enumerate(_places(max(chains))))):
        start = cut + place
        session.truncate([start])
        step = np.resize(prompt[start:], rows)
        alone = _logits(session, step)[:1]
        seen = [c[number] for n, c in chains.items() if n >= rows and place < n]
        worst = max([worst, *(float(gaps(row[None], alone).max()) for row in seen)])
    return worst


def _tree(session: Session, prompt: Ints, cut: int) -> float:
    """Largest relative difference of the rows of two branches, in one step row by row in turn, from
    the same branches as chains."""
    half = TREE // 2
    branches = [prompt[cut : cut + half], prompt[:half][::-1].copy()]
    _fill(session, prompt, cut)
    chains = [_logits(session, branch) for branch in branches]
    rows = np.arange(TREE)
    mask = (rows[:, None] % 2 == rows % 2) & (rows <= rows[:, None])
    tokens = np.stack(branches, axis=1).reshape(-1)
    together = _logits(session, tokens, rows // 2, mask)
    return max(float(gaps(together[i::2], chain).max()) for i, chain in enumerate(chains))


def _batch(session: Session, prompt: Ints, cut: int) -> float:
    """Largest relative difference of single rows of two sequences of different lengths, in one
    step, from the same rows alone."""
    starts, alone = (cut, 2), list[Floats]()
    for start in starts:
        _fill(session, prompt, start)
        alone.append(_logits(session, prompt[start : start + 1]))
    session.reset(2)
    session.prefill([prompt[:start] for start in starts])
    tokens = np.stack([prompt[start : start + 1] for start in starts])
    together = session.score(tokens).logits.copy()
    session.reset(1)
    return max(float(gaps(together[i], row).max()) for i, row in enumerate(alone))
