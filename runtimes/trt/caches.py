"""The caches of all layers on a device: one allocation per shape, cut into layers."""

from __future__ import annotations

import weakref
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


class DeviceSlots:
    """The keys and values of `count` slots of one sequence on the device: [layers, K, count, D] at
    an address for each shape; given back with this object."""

    def __init__(self, device: Device, sizes: Sequence[int], count: int) -> None:
        self.count, self.nbytes = count, sum(sizes)
        self.addresses: list[int] = []
        given = weakref.finalize(self, _release, device, self.addresses)
        given.atexit = False  # the process gives all of it back
        for size in sizes:
            self.addresses.append(device.allocate(size))


def _release(device: Device, addresses: list[int]) -> None:
    device.synchronize()  # moves from and to it are through
    for address in addresses:
        device.release(address)


class DeviceCaches:
    """Keys and values of every layer, with room for so many sequences.

    Slots behind a sequence's length hold what was last there, always finite: they begin as zeros,
    and a masked slot that held NaN would still reach the sums of attention.
    """

    def __init__(self, device: Device, ports: Sequence[Port]) -> None:
        self._device = device
        self.room = 0
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

    def make_room(self, room: int, held: int) -> None:
        """Lay the caches out for `room` sequences; the first `held` keep what they have."""
        for block in self._blocks:
            old, block.base = block.base, 0
            new = self._device.allocate(len(block.names) * room * block.sequence)
            if old and held:
                size = held * block.sequence
                box = Box(width=size, height=1, depth=1, pitch=size, slice_pitch=size)
                for layer in range(len(block.names)):
                    to = new + layer * room * block.sequence
                    self._device.move(to, old + layer * self.room * block.sequence, box)
            if old:
                self._device.synchronize()  # the moves are through
                self._device.release(old)
            block.base = new
        self.room = room

    def copy(self, row: int, to: int) -> None:
        """Copy all that sequence `row` has to sequence `to`."""
        for block in self._blocks:
            box = Box(
                width=block.sequence,
                height=1,
                depth=len(block.names),
                pitch=block.sequence,
                slice_pitch=self.room * block.sequence,
            )
            self._device.move(
                block.base + to * block.sequence, block.base + row * block.sequence, box
            )

    def addresses(self, row: int = 0) -> dict[str, int]:
        """Where each cache lies, by the name of its input, from sequence `row` on."""
        return {
            name: block.base + (layer * self.room + row) * block.sequence
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
                slice_pitch=self.room * block.sequence,
            )
            self._device.move(start + to * block.row, start + source * block.row, box)

    def cut(self, row: int, start: int, stop: int) -> DeviceSlots:
        """A copy of slots [start, stop) of sequence `row`."""
        count = stop - start
        sizes = [len(block.names) * block.heads * count * block.row for block in self._blocks]
        kept = DeviceSlots(self._device, sizes, count)
        for block, address in zip(self._blocks, kept.addresses, strict=True):
            there, here = self._boxes(block, count, count)
            source = block.base + row * block.sequence + start * block.row
            self._device.move(address, source, here, there)
        return kept

    def put(self, row: int, start: int, kept: DeviceSlots, count: int) -> None:
        """Write the first `count` slots of a copy from slot `start` of sequence `row` on."""
        for block, address in zip(self._blocks, kept.addresses, strict=True):
            there, here = self._boxes(block, count, kept.count)
            to = block.base + row * block.sequence + start * block.row
            self._device.move(to, address, there, here)

    def _boxes(self, block: _Block, count: int, most: int) -> tuple[Box, Box]:
        """`count` slots of one sequence for all layers and heads: as a copy of `most` slots has
        them, and as the caches do."""
        width, layers = count * block.row, len(block.names)
        pitch = most * block.row
        return (
            Box(width, block.heads, layers, pitch, block.heads * pitch),
            Box(width, block.heads, layers, block.pitch, self.room * block.sequence),
        )

    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        """Bring rows `path` (ascending) of those from slot `start` on together behind it.

        Row path[j] goes to place j. As paths ascend, path[j] >= j: place j is behind every row that
        is still to be moved, so one after another none is overwritten before it was read.
        """
        for place, node in enumerate(path):
            if node != place:
                self.move(row, start + node, start + place)
