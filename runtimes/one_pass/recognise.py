"""What a recogniser's scores say: the ids of each row's text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graftline.errors import RequestError
from graftline.ports import Port, by_role
from graftline.roles import COUNTS, SCORES
from graftline.runtimes.one_pass.feeding import Array


def outputs_of(ports: Sequence[Port]) -> list[str]:
    """The names of the scores and, where the network counts them, of how many positions each row
    has; none of a host that is no recogniser."""
    return [p.name for role in (SCORES, COUNTS) for p in by_role(ports, role, "out")]


def texts_of(path: Path, scores: Array, counts: Array | None) -> list[list[int]]:
    """The best token of every position, of scores [B, U, V]; of as many as are counted [B]. Raises
    RequestError for a text of more positions than there are."""
    best: list[list[int]] = scores.argmax(-1).tolist()
    if counts is None:
        return best
    each: list[int] = np.asarray(counts, np.int64).tolist()
    if max(each, default=0) > scores.shape[1]:
        raise RequestError(
            f"{path}: a text of {max(each)} positions, and the engine scores {scores.shape[1]}; "
            "give shorter signals, or rebuild it with more: "
            f"--passes pad-positions{{positions={max(each)}}}"
        )
    return [ids[:count] for ids, count in zip(best, each, strict=True)]
