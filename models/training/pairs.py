"""Pairs of noise and the sample that a teacher draws from it, kept once they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graftline.errors import GraftlineError
from graftline.models.host import Watch
from graftline.models.training.clock import Clock
from graftline.models.training.tensor_file import Array, check_room, read_tensors, write_tensors

Teacher = Callable[[Array, Mapping[str, Array]], Array]
"""teacher(noise [B, C, H, W], conditions [B, ...] by name) -> samples [B, C, H, W]."""
SHARD = 256
"""Pairs of a file."""
BATCH = 64
"""Samples that a teacher draws at once."""
HELD_OUT, MOST_HELD = 0.05, 512
"""The share of the conditions that are held out with their pairs, and at most so many of these."""


@dataclass(frozen=True)
class Pairs:
    """Unit noise and samples [M, C, H, W]; `rows` [M] says which condition each was drawn for."""

    noise: torch.Tensor
    samples: torch.Tensor
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: torch.Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.noise[places], self.samples[places], self.rows[places])

    def parted(self) -> tuple[Pairs, Pairs]:
        """Those to learn from, and those of the last conditions, held out. Raises GraftlineError
        where all are of one condition and there is no other pair."""
        rows = self.rows if int(self.rows.max()) else torch.arange(len(self))
        count = int(rows.max()) + 1
        if count < 2:
            raise GraftlineError(f"{len(self)} pair; one is held out, so draw at least 2 --pairs")
        first = count - max(1, round(HELD_OUT * count))
        held = torch.nonzero(rows >= first).flatten()[:MOST_HELD]
        return self.at(torch.nonzero(rows < first).flatten()), self.at(held)


@dataclass(frozen=True)
class Drawing:
    """What is drawn: `count` pairs of samples of a `shape` [C, H, W], for `conditions` [R, ...] in
    turn (none: without), by a seed."""

    teacher: Teacher
    shape: Sequence[int]
    conditions: Mapping[str, Array]
    count: int
    seed: int

    @property
    def rows(self) -> int:
        """Conditions that are taken in turn."""
        known = [len(value) for value in self.conditions.values()]
        return known[0] if known else self.count

    def sizes(self) -> list[int]:
        """Pairs of each shard."""
        return [min(SHARD, self.count - at) for at in range(0, self.count, SHARD)]


def draw_pairs(
    drawing: Drawing, folder: Path, clock: Clock, until: float, say: Watch
) -> Sequence[Path]:
    """The files of pairs, as many as the time allows up to a share of it, at least one; those that
    are there already are not drawn again. Raises GraftlineError for a full disk, and for samples
    that are not finite."""
    sizes = drawing.sizes()
    files = [folder / f"{place}.safetensors" for place in range(len(sizes))]
    need = sum(n for n, f in zip(sizes, files, strict=True) if not f.exists())
    check_room(folder, need * 8 * int(np.prod(drawing.shape)), f"{need} pairs of noise and sample")
    for place, file in enumerate(files):
        if place and clock.past(until):
            return files[:place]
        if not file.exists():
            done = sum(sizes[:place])
            say(f"drawing samples: {done:,} of {drawing.count:,} by the teacher's whole loop")
            write_tensors(file, _shard(drawing, place, sizes[place]), {})
    return files


def read_pairs(files: Sequence[Path], rows: int) -> Pairs:
    """The pairs of some files, of so many conditions. Raises CheckpointError for a damaged one."""
    found = [read_tensors(file)[0] for file in files]
    noise, samples = (
        torch.from_numpy(np.concatenate([one[name] for one in found]))
        for name in ("noise", "sample")
    )
    return Pairs(noise, samples, torch.arange(len(noise)) % rows)


def _shard(drawing: Drawing, place: int, count: int) -> dict[str, Array]:
    random = np.random.default_rng([drawing.seed, place])
    noise = random.standard_normal((count, *drawing.shape)).astype(np.float32)
    rows = (place * SHARD + np.arange(count)) % drawing.rows
    parts: list[Array] = []
    for at in range(0, count, BATCH):
        some = slice(at, at + BATCH)
        given = {name: value[rows[some]] for name, value in drawing.conditions.items()}
        parts.append(drawing.teacher(noise[some], given))
    sample: Any = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(sample).all():
        raise GraftlineError("the teacher draws samples that are not finite; nothing is learned")
    return {"noise": noise, "sample": sample}
