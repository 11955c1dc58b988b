"""The caches of all layers on a device: one allocation per shape, cut into layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graftline.ports import Port, slot_ports
from graftline.runtimes.trt.device import Box, Device


@dataclass
class _Block:
    """Caches [layers, B, K, S, D] of one shape, at `base`."""

    names: list[str]
    heads: int
    slots: int
    row: int
    """Bytes of one row of one head."""
    base: int = 0

    @property
    def pitch(self) -> int:
        """Bytes of one head of one sequence: its S slots."""
        return self.slots * self.row

    @property
    def sequence(self) -> int:
        """Bytes of one sequence in one layer."""
        return self.heads * self.pitch


class DeviceCaches:
    """Keys and values of every layer for `batch` sequences; memory grows with the largest batch.

    Slots behind a sequence's length hold what was last there, always finite: they begin as zeros,
    and a masked slot that held NaN would still reach the sums of attention.
    """

    def __init__(self, device: Device, ports: Sequence[Port]) -> None:
        self._device = device
        self.batch = self._room = 0
        self._blocks: list[_Block] = []
        for port in (p for p in slot_ports(ports) if p.mirror is not None):
            assert port.mirror is not None
            _, heads, slots, size = (d if isinstance(d, int) else 0 for d in port.shape)
            row = size * np.dtype(port.dtype).itemsize
            alike = [b for b in self._blocks if (b.heads, b.slots, b.row) == (heads, slots, row)]
            if alike:
                if port.mirror not in alike[0].names:
                    alike[0].names.append(port.mirror)
            else:
                self._blocks.append(_Block([port.mirror], heads, slots, row))
        self.slots = min((b.slots for b in self._blocks), default=0)

    def reset(self, batch: int) -> None:
        """Lay the caches out for `batch` sequences. What they held is lost."""
        if batch > self._room:
            self.release()
            for block in self._blocks:
                block.base = self._device.allocate(len(block.names) * batch * block.sequence)
            self._room = batch
        self.batch = batch

    def addresses(self, row: int | None = None) -> dict[str, int]:
        """Where each cache lies, by the name of its input: of all sequences, or of one alone."""
        return {
            name: block.base + (layer * self.batch + (row or 0)) * block.sequence
            for block in self._blocks
            for layer, name in enumerate(block.names)
        }

    def move(self, row: int, source: int, to: int) -> None:
        """Copy a slot of sequence `row` to another slot, for all layers and heads in one call."""
        for block in self._blocks:
            start = block.base + row * block.sequence
            box = Box(
                width=block.row,
                height=block.heads,
                depth=len(block.names),
                pitch=block.pitch,
                slice_pitch=self.batch * block.sequence,
            )
            self._device.move(start + to * block.row, start + source * block.row, box)

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        """Bring rows `path` (ascending) of those from slot `start` on together behind it.

        Row path[j] goes to place j. As paths ascend, path[j] >= j: place j is behind every row that
        is still to be moved, so one after another none is overwritten before it was read.
        """
        for place, node in enumerate(path):
            if node != place:
                self.move(row, start + node, start + place)

    def release(self) -> None:
        """Give the memory back, once the moves of the last commit are through."""
        self._device.synchronize()
        for block in self._blocks:
            if block.base:
                self._device.release(block.base)
            block.base = 0
        self._room = 0
