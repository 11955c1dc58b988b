"""The seats of a session: its sequences' keys and values in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.ports import Port
from graftline.runtimes.ort.caches import HostSlots
from graftline.runtimes.ort.calls import MOST_ROWS, BoundCalls
from graftline.runtimes.ort.resumes import Resumes
from graftline.runtimes.session import Ints, Snapshot, rolled_back


class HostSeats(BoundCalls):
    """Sequences by row: what each has committed, and room for more of them. See
    `runtimes.session.Session`."""

    _caches: list[Port]
    """The outputs that are written in place."""
    _guests: list[HostSeats]
    """Sessions over the same caches."""
    resumes: Resumes | None
    """Rows that exits of this target have begun, where it has exits."""

    @property
    def lengths(self) -> Ints:
        """[B]: committed positions of each sequence."""
        return self._lengths

    def caches(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """The caches of sequence `row`, [1, K, S, D] each, by the name of their graph input: views,
        valid until more sequences than ever before are seated."""
        views = self._memory.of(row, 1)
        return {port.mirror: views[port.name] for port in self._caches if port.mirror is not None}

    def reset(self, batch: int) -> None:
        """Forget everything and make room for `batch` sequences; memory is kept."""
        if self.resumes is not None:
            self.resumes.forget()
        self._make_room(batch, self._lengths[:0])
        self._lengths = np.zeros(batch, np.int64)

    def seat(self) -> int:
        """Room for one more sequence; what the others have stays where it is, or is copied once
        each time that their number has doubled."""
        row = len(self._lengths)
        self._make_room(row + 1, self._lengths)
        self._lengths = np.append(self._lengths, 0)
        return row

    def leave(self, row: int) -> None:
        """Forget sequence `row`; the last one's keys and values move there."""
        last = len(self._lengths) - 1
        if row != last:
            self._memory.move(last, row, int(self._lengths[last]))
            self._lengths[row] = self._lengths[last]
        self._lengths = self._lengths[:last].copy()

    def _make_room(self, batch: int, held: Ints) -> None:
        """Room for so many sequences, of which those of lengths `held` are kept.

        Calls that are bound to memory that has moved are forgotten, the guests' too.
        """
        if self._memory.make_room(batch, self.capacity + MOST_ROWS, held):
            for each in (self, *self._guests):
                each._calls.clear()
                each._packed.clear()

    def advance(self, row: int, count: int) -> None:
        """Count `count` more slots of sequence `row` as committed: a fused step has filled them."""
        self._lengths[row] += count

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the rows in each path, moved together behind the committed ones."""
        for row, path in enumerate(paths):
            self._memory.keep(row, int(self._lengths[row]), path)
            self._lengths[row] += len(path)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll back each sequence to a shorter committed length."""
        self._lengths = rolled_back(self._lengths, lengths)

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """A copy of committed slots. See `Session.snapshot`."""
        return self._memory.cut(row, start, stop)

    def restore(self, row: int, kept: Snapshot, count: int) -> None:
        """Commit the positions of a copy. See `Session.restore`."""
        assert isinstance(kept, HostSlots), "a snapshot of another kind of session"
        self._memory.put(row, int(self._lengths[row]), kept, count)
        self._lengths[row] += count
