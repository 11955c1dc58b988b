"""How the host reads the texts, on disk: shards of whole texts, named by their content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftline.models.host import Watch
from graftline.models.training.answers import Text
from graftline.models.training.clock import Clock, left
from graftline.models.training.frozen import BEST, States, Teacher
from graftline.models.training.tensor_file import (
    Array,
    check_room,
    damaged,
    read_tensors,
    write_tensors,
)

SHARD = 32
"""Texts of a file."""


@dataclass(frozen=True)
class Row:
    """A `Text` of N tokens with what the host makes of it."""

    ids: Array
    states: States
    start: int
    group: int
    greedy: bool

    def __len__(self) -> int:
        return len(self.ids)


def position_bytes(teacher: Teacher) -> int:
    """Bytes of a position on disk: its id, its state, its best tokens and their scores."""
    return 4 + 2 * teacher.width + 6 * min(BEST, teacher.vocabulary)


def write_rows(
    folder: Path, texts: Sequence[Text], teacher: Teacher, clock: Clock, until: float, say: Watch
) -> list[Path]:
    """The shards of all texts, or of those that the host has read before the share `until` of the
    time was over; a shard that is there is not written again. Raises GraftlineError on a full disk.
    """
    shards = [texts[i : i + SHARD] for i in range(0, len(texts), SHARD)]
    paths = [folder / f"{_name(shard, teacher)}.safetensors" for shard in shards]
    todo = [
        sum(len(t.ids) for t in s) for s, p in zip(shards, paths, strict=True) if not p.exists()
    ]
    need, done, began = sum(todo) * position_bytes(teacher), 0, time.monotonic()
    if todo:
        say(f"hidden states of {sum(todo):,} positions: {need / 1e6:.1f} MB in {folder}")
    check_room(folder, need, "hidden states")
    found: list[Path] = []
    for shard, path in zip(shards, paths, strict=True):
        if not path.exists():
            if found and clock.past(until):
                continue
            write_tensors(path, _tensors(shard, teacher), {})
            done += sum(len(t.ids) for t in shard)
            rate = done / (time.monotonic() - began)
            say(
                f"hidden states: {done:,} of {sum(todo):,} positions, {rate:.0f} a second, "
                f"{left((sum(todo) - done) / rate)} left"
            )
        found.append(path)
    return found


def read_rows(shards: Sequence[Path]) -> list[Row]:
    """All texts of the shards. Raises CheckpointError for one that is missing or damaged."""
    return [row for path in shards for row in _read(path)]


def _name(shard: Sequence[Text], teacher: Teacher) -> str:
    words = repr([(t.ids, t.start, t.group, t.greedy) for t in shard])
    return hashlib.sha256(f"{teacher.name} {BEST} {words}".encode()).hexdigest()[:32]


def _tensors(shard: Sequence[Text], teacher: Teacher) -> dict[str, Any]:
    read = [teacher.states(text.ids) for text in shard]
    return {
        "ids": np.concatenate([np.asarray(t.ids, np.int32) for t in shard]),
        "lengths": np.asarray([len(t.ids) for t in shard], np.int32),
        "starts": np.asarray([t.start for t in shard], np.int32),
        "groups": np.asarray([t.group for t in shard], np.int64),
        "greedy": np.asarray([t.greedy for t in shard], np.uint8),
        "taps": np.concatenate([s.taps for s in read]),
        "best": np.concatenate([s.best for s in read]),
        "scores": np.concatenate([s.scores for s in read]),
    }


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        raise damaged(path, "it is missing, though the run has read it before")
    held, _ = read_tensors(path)
    ends = np.cumsum(held["lengths"])
    rows: list[Row] = []
    for i, end in enumerate(ends):
        span = slice(int(end - held["lengths"][i]), int(end))
        states = States(held["taps"][span], held["best"][span], held["scores"][span])
        start, group = int(held["starts"][i]), int(held["groups"][i])
        ids, greedy = held["ids"][span].astype(np.int64), bool(held["greedy"][i])
        rows.append(Row(ids, states, start, group, greedy))
    return rows
