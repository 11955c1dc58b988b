"""The caches of a session in the host's memory. Those of one shape lie in one block, so keeping a
path of a tree is one move for all layers. Running states, which have no slots, lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.ports import Port
from graftline.runtimes.session import Ints

SEVERAL = 8
"""Sequences that there is room for as soon as there is a second one."""


@dataclass(frozen=True)
class HostSlots:
    """The keys and values of some slots of one sequence, [caches, heads, slots, size] by shape."""

    parts: list[npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(part.nbytes for part in self.parts)


class HostCaches:
    """Keys and values of every layer for a batch of sequences, and their running states.

    `blocks` are [caches, room, heads, slots, size], `states` [room, ...]; `views` [room, heads,
    slots, size] and states by the name of the graph's output that is written in place. A state is
    that of the last step: no copy of slots holds any.
    """

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = ports
        self.blocks: list[npt.NDArray[Any]] = []
        self.states: list[npt.NDArray[Any]] = []
        self.views: dict[str, npt.NDArray[Any]] = {}
        self._room = 0

    def make_room(self, batch: int, slots: int, lengths: Sequence[int] | Ints) -> bool:
        """Have room for `batch` sequences, those of `lengths` kept; True if memory has moved.

        Room that does not suffice becomes that of SEVERAL sequences, then doubles, so that those
        that come one by one are copied seldom; memory that none has touched costs nothing.
        """
        if batch <= self._room:
            return False
        self._room = max(batch, SEVERAL, 2 * self._room) if self._room else batch
        held, states = list(self.blocks), list(self.states)
        self.blocks.clear()
        self.states.clear()
        self.views.clear()
        shapes: dict[tuple[int, int, str], list[Port]] = {}
        for port in self._ports:
            if port.state == "running":
                array = np.zeros((self._room, *map(int, port.shape[1:])), np.dtype(port.dtype))
                self.states.append(array)
                self.views[port.name] = array
                continue
            shapes.setdefault((int(port.shape[1]), int(port.shape[3]), port.dtype), []).append(port)
        for (heads, size, dtype), ports in shapes.items():
            block = np.zeros((len(ports), self._room, heads, slots, size), np.dtype(dtype))
            self.blocks.append(block)
            self.views |= {p.name: block[i] for i, p in enumerate(ports)}
        for old, new in zip(held, self.blocks, strict=False):
            for row, length in enumerate(lengths):
                new[:, row, :, :length] = old[:, row, :, :length]
        for old, new in zip(states, self.states, strict=False):
            new[: len(old)] = old
        return True

    def of(self, row: int, count: int) -> dict[str, npt.NDArray[Any]]:
        """The views of `count` sequences from `row` on, [count, heads, slots, size]."""
        return {name: view[row : row + count] for name, view in self.views.items()}

    def move(self, row: int, to: int, length: int) -> None:
        """Copy what sequence `row` has in its first `length` slots, and its states, to sequence
        `to`."""
        for block in self.blocks:
            block[:, to, :, :length] = block[:, row, :, :length]
        for state in self.states:
            state[to] = state[row]

    def cut(self, row: int, start: int, stop: int) -> HostSlots:
        """A copy of slots [start, stop) of sequence `row`."""
        return HostSlots([block[:, row, :, start:stop].copy() for block in self.blocks])

    def put(self, row: int, start: int, kept: HostSlots, count: int) -> None:
        """Write the first `count` slots of a copy from slot `start` of sequence `row` on."""
        for block, part in zip(self.blocks, kept.parts, strict=True):
            block[:, row, :, start : start + count] = part[:, :, :count]

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        """Move the new rows in `path` (ascending), written from slot `start` on, together there."""
        kept = len(path)
        if not kept or path[-1] == kept - 1:
            return
        first = next(i for i, node in enumerate(path) if node != i)
        source = np.asarray(path[first:]) + start
        for block in self.blocks:
            block[:, row, :, start + first : start + kept] = block[:, row][:, :, source]
