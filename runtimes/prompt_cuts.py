"""Does a prompt give the same bits however it is cut into calls?

Where it does, what one prompt has read is the beginning of any other, down to the last token that
they share. Kernels that round a single row unlike several may still agree on all calls of several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftline.runtimes.prefix_cache import CHUNK
from graftline.runtimes.row_invariance import RowInvariance
from graftline.runtimes.session import Floats, Ints, Session

STEPS = 3
"""Steps of a chain that are tried in place of a prompt's end."""


def same_rows(session: Session, prompt: Ints, known: RowInvariance) -> int | None:
    """`Session.same_rows`, measured: the scores behind a whole chunk, `prompt` repeated, are to be
    the same bits when it is read in two calls, and when steps write its end.

    Tried where `known` says that rows agree from some number on and not all do: elsewhere no one
    needs it, or it cannot be. The session's caches are lost.
    """
    rows, size = known.min_rows, min(CHUNK, session.capacity)
    if known.row_invariant or rows is None or size < (STEPS + 2) * rows:
        return None
    ids = np.resize(prompt, size)
    whole = _read(session, [ids])
    for cut in (rows, size // 3, size - rows):
        if not np.array_equal(_read(session, [ids[:cut], ids[cut:]]), whole):
            return None
    steps = np.split(ids[size - STEPS * rows :], STEPS)
    _read(session, [ids[: size - STEPS * rows]])
    for step in steps:
        last = session.score(step[None]).logits[0, -1].copy()
        session.commit([tuple(range(rows))])
    return rows if np.array_equal(last, whole) else None  # pyright: ignore[reportPossiblyUnboundVariable]


def _read(session: Session, parts: Sequence[Ints]) -> Floats:
    """[V]: what follows the prompt of these parts, each read in a call of its own."""
    session.reset(1)
    for part in parts:
        scores = session.read(0, part)
    return scores.logits[0, -1].copy()  # pyright: ignore[reportPossiblyUnboundVariable]
