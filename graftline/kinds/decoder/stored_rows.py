"""Rows of numbers that wait in a file, not in memory."""

from __future__ import annotations

from tempfile import SpooledTemporaryFile
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

IN_MEMORY = 64 << 20
"""Bytes up to which a file is worth no disk."""


class StoredRows:
    """Rows [K, V], in a file without a name that goes with the object: the logits of a sequence as
    long as a window and of a large vocabulary take as much as the weights."""

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._like = np.empty((0, *rows.shape[1:]), rows.dtype)
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        finalize(self, self._file.close)  # no block that it could be closed behind
        for row in rows:
            self._file.write(np.ascontiguousarray(row).data)

    def at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """[P, V]: copies of the rows at `places`."""
        found = np.empty((len(places), *self._like.shape[1:]), self._like.dtype)
        for row, place in zip(found, places, strict=True):
            self._file.seek(int(place) * row.nbytes)
            if self._file.readinto(row.data) != row.nbytes:
                raise OSError(f"row {place} of {row.nbytes} bytes is gone from a temporary file")
        return found
