"""The caches of a session in the host's memory. Those of one shape lie in one block, so keeping a
path of a tree is one move for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.ports import Port


class HostCaches:
    """Keys and values of every layer for a batch of sequences.

    `blocks` are [caches, B, heads, slots, size], `views` [B, heads, slots, size] by the name of the
    graph's output that is written in place.
    """

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = ports
        self.blocks: list[npt.NDArray[Any]] = []
        self.views: dict[str, npt.NDArray[Any]] = {}

    @property
    def batch(self) -> int:
        """Sequences that there is room for; 1 before any."""
        return len(next(iter(self.views.values()))) if self.views else 1

    def allocate(self, batch: int, slots: int) -> None:
        """Make room for `batch` sequences, in place of what was held."""
        self.blocks.clear()
        self.views.clear()
        shapes: dict[tuple[int, int, str], list[Port]] = {}
        for port in self._ports:
            shapes.setdefault((int(port.shape[1]), int(port.shape[3]), port.dtype), []).append(port)
        for (heads, size, dtype), ports in shapes.items():
            block = np.zeros((len(ports), batch, heads, slots, size), np.dtype(dtype))
            self.blocks.append(block)
            self.views |= {p.name: block[i] for i, p in enumerate(ports)}

    def of(self, row: int | None) -> dict[str, npt.NDArray[Any]]:
        """The views of all sequences, or of sequence `row` alone, [1, heads, slots, size]."""
        if row is None:
            return self.views
        return {name: view[row : row + 1] for name, view in self.views.items()}

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        """Move the new rows in `path` (ascending), written from slot `start` on, together there."""
        kept = len(path)
        if not kept or path[-1] == kept - 1:
            return
        first = next(i for i, node in enumerate(path) if node != i)
        source = np.asarray(path[first:]) + start
        for block in self.blocks:
            block[:, row, :, start + first : start + kept] = block[:, row][:, :, source]
