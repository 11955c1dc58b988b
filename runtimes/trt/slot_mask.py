"""The mask of a step with fixed slots, kept in one array and changed no more than it must be."""

from __future__ import annotations

from graftline.runtimes.session import Bools


class SlotMask:
    """Over an array [B, 1, N, S]: which slots each new row sees. It begins all hidden.

    Of every sequence it is known that all rows see the slots before `seen` and none sees those from
    `end` on, so that a step after a step writes few columns. `changed` are the columns written
    since it was last asked for, which is what the device must be told.
    """

    def __init__(self, array: Bools) -> None:
        array[:] = False
        batch, _, _, slots = array.shape
        self.array = array
        self._seen, self._end = [0] * batch, [0] * batch
        self._first, self._last = 0, slots  # the device holds anything

    def after(self, row: int, start: int, fresh: Bools) -> None:
        """Sequence `row` sees all slots before `start` and, of the M from it on, `fresh` [N, M]."""
        block, (seen, end) = self.array[row, 0], (self._seen[row], self._end[row])
        width = start + fresh.shape[1]
        block[:, min(seen, start) : start] = True
        block[:, start:width] = fresh
        block[:, width : max(end, width)] = False
        self._note(min(seen, start), max(end, width))
        self._seen[row], self._end[row] = start, width

    def changed(self) -> tuple[int, int]:
        """Columns [first, last) written since the last call, over all sequences."""
        columns = self._first, self._last
        self._first, self._last = self.array.shape[3], 0
        return columns

    def _note(self, first: int, last: int) -> None:
        self._first, self._last = min(self._first, first), max(self._last, last)
