"""Scores whose widest arrays stay on the device until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError
from graftline.runtimes.session import Floats, Ints, Scores, Tap

K = TypeVar("K")
Read = Callable[[], Floats]
STALE = "scores were read after the next call; copy them before it"


class LazyTaps(Mapping[Tap, Floats], Generic[K]):
    """Hidden states, each of which is fetched when it is first read."""

    def __init__(self, names: Mapping[Tap, K], fetch: Callable[[K], npt.NDArray[Any]]) -> None:
        """`names` are what `fetch` knows them by."""
        self._names, self._fetch = names, fetch
        self._read: dict[Tap, Floats] = {}

    def __getitem__(self, tap: Tap) -> Floats:
        if tap not in self._read:
            self._read[tap] = self._fetch(self._names[tap]).astype(np.float32, copy=False)
        return self._read[tap]

    def __iter__(self) -> Iterator[Tap]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class DeviceScores(Scores):
    """`logits` and `taps` are copied when they are first read, which must be before the next call
    of the session (BackendError after it). Most rules read the few integers beside them only."""

    def __init__(
        self,
        argmax: Ints,
        topk_ids: Ints | None,
        topk_logits: Floats | None,
        top_gap: Floats | None,
        read_logits: Read,
        taps: Mapping[Tap, Floats],
    ) -> None:
        given = {
            "argmax": argmax, "topk_ids": topk_ids, "topk_logits": topk_logits, "top_gap": top_gap,
            "_read_logits": read_logits, "taps": taps,
        }  # fmt: skip
        for name, value in given.items():
            object.__setattr__(self, name, value)  # Scores is frozen

    _read_logits: Read

    @cached_property
    def logits(self) -> Floats:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[B, N, V]."""
        return self._read_logits()


def copied(scores: Scores) -> Scores:
    """All of it on the host, for good."""
    return Scores.of({key: part.copy() for key, part in scores.parts().items()})


def one_row(scores: Scores, row: int, node: int) -> Scores:
    """One row of them (B = N = 1), on the host and for good."""
    place = slice(row, row + 1), slice(node, node + 1)
    return Scores.of({key: part[place].copy() for key, part in scores.parts().items()})


def of_sequence(scores: Scores, row: int) -> Scores:
    """Those of one sequence (B = 1), where and as long as the whole is."""
    rows = slice(row, row + 1)
    if not isinstance(scores, DeviceScores):
        return Scores.of({key: part[rows] for key, part in scores.parts().items()})

    def part(values: Any) -> Any:
        return None if values is None else values[rows]

    taps = LazyTaps({tap: tap for tap in scores.taps}, lambda tap: scores.taps[tap][rows])
    few = part(scores.argmax), part(scores.topk_ids), part(scores.topk_logits), part(scores.top_gap)
    return DeviceScores(*few, lambda: scores.logits[rows], taps)


def joined(rows: list[Scores], axis: int = 0) -> Scores:
    """Scores of several calls as one, along an axis."""
    parts = [each.parts() for each in rows]
    return Scores.of({key: np.concatenate([p[key] for p in parts], axis) for key in parts[0]})


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
