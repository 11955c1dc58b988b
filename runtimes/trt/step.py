"""One optimization profile of an engine: its context, and the memory a step reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from graftline.ports import Port, slot_ports
from graftline.runtimes.trt.device import Array, Box, Context, Device, Enqueue
from graftline.runtimes.trt.slot_mask import SlotMask

SCORES = frozenset({"argmax", "topk_ids", "topk_logits", "top_gap"})
"""Roles of the outputs that a scoring step brings to the host; the others stay until asked for."""
FUSED = frozenset({"accepted", "count"})
"""The same of a fused step."""
Extents = Mapping[str, int]
"""Sizes by symbol: B sequences, N rows, R of them with logits, P and M rows of the last and next
tree of a fused step."""


class ProfileStep:
    """Memory for steps of at most the extents `most`; smaller ones use its front.

    `elsewhere` are tensors, by name, that lie in somebody else's memory. A `carrying` step gets its
    inputs from the last one: what an output says of an input (its port's mirror) is copied there
    when it has run, and the host only says with `put` what differs.

    `arrays` are the host's views of the inputs and of what is read back, by role and in the shape
    of the last `shape`. With `fixed` rows a step that has run once is recorded as a CUDA graph, if
    the engine allows it: copies in, the engine, copies out are then one launch.
    """

    def __init__(
        self,
        device: Device,
        context: Context,
        ports: Sequence[Port],
        most: Extents,
        fixed: bool,
        elsewhere: Mapping[str, int] | None = None,
        carrying: bool = False,
        reads: frozenset[str] = SCORES,
    ) -> None:
        self._device, self._context = device, context
        self._fixed, self._carrying = fixed, carrying
        self._ports = [p for p in ports if p.state != "slots"]
        self._caches = [p for p in slot_ports(ports) if p.mirror is not None]
        own = [p for p in self._ports if p.name not in (elsewhere or {})]
        self._inputs = [p for p in own if p.direction == "in" and p.role != "mask"]
        read = FUSED if carrying else reads
        self._small = [p for p in own if p.role in read]
        self._mask_port = next((p for p in own if p.role == "mask"), None)
        self._sizes = {p.name: _bytes(p, most) for p in own}
        self._address = {name: device.allocate(size) for name, size in self._sizes.items()}
        self._own = list(self._address.values())
        self._address |= elsewhere or {}
        self._twins: dict[str, npt.NDArray[np.uint8]] = {}
        self._extents: Extents = {}
        self._shape: tuple[tuple[str, int], ...] = ()
        self._warm = False
        self._replay: Enqueue | None = None
        self.arrays: dict[str, Array] = {}
        self.mask: SlotMask | None = None
        self.turn = 0
        """Runs so far: what a run left on the device is its own until the next."""

    def shape(self, extents: Extents, caches: Mapping[str, int]) -> None:
        """Make ready for steps of this shape, with the caches (by input name) at these addresses.

        A CUDA graph holds shapes and addresses, so another shape forgets it.
        """
        shape = (*extents.items(), *caches.items())
        if shape == self._shape:
            return
        self._extents = extents
        for port in self._ports:
            self._context.bind(port.name, self._address[port.name], _dims(port, extents))
        for port in self._caches:
            assert port.mirror is not None
            dims = _dims(port, extents)
            self._context.bind(port.mirror, caches[port.mirror], dims)
            self._context.bind(port.name, caches[port.mirror], dims)
        self.arrays = {p.role: self._view(p) for p in (*self._inputs, *self._small)}
        if self._mask_port is not None:
            self.mask = SlotMask(self._view(self._mask_port))
        self._shape, self._warm, self._replay = shape, False, None

    def run(self) -> None:
        """Run with what `arrays` and `mask` hold; wait until the outputs are read back."""
        self.turn += 1
        if self.mask is not None and self._mask_port is not None:
            first, last = self.mask.changed()
            flat = self.mask.array.reshape(-1, self.mask.array.shape[3])
            if first < last:
                self._device.upload_columns(
                    self._address[self._mask_port.name], flat, first, last
                )
        if self._replay is None and self._fixed and self._warm and self._context.recordable():
            self._replay = self._device.capture(self._enqueue)
        if self._replay is None:
            self._enqueue()
        else:
            self._replay()
        self._warm = True
        self._device.synchronize()

    def fetch(self, name: str, rows: int) -> Array:
        """An output that was left on the device, [B, R, ...], of which the first `rows` rows are
        wanted; valid until the next call."""
        port = next(p for p in self._ports if p.name == name)
        array = self._view(port)
        if len(array) == 1:
            array = array[:, :rows]  # still contiguous: fewer bytes to bring
        self._device.download(array, self._address[name])
        self._device.synchronize()
        return array[:, :rows]

    def forget(self) -> None:
        """Another step has bound the context: `shape` binds it again."""
        self._shape = ()

    def release(self) -> None:
        """Give the device memory back; what was left there cannot be fetched any more."""
        self.turn += 1
        for address in self._own:
            self._device.release(address)

    def put(self, role: str, value: object, row: int | None = None, first: int = 0) -> None:
        """Set an input on the device: all of it, or from column `first` on what is of sequence
        `row`; the others' is only there."""
        whole = self.arrays[role]
        array = whole if row is None else whole[row : row + 1]
        if first:
            array = array[0, first:]
        array[...] = value
        start = array.ctypes.data - whole.ctypes.data
        port = next(p for p in self._inputs if p.role == role)
        self._device.upload(self._address[port.name] + start, array)
        self._device.synchronize()  # until then the array may not change again

    def _enqueue(self) -> None:
        if not self._carrying:
            for port in self._inputs:
                self._device.upload(self._address[port.name], self.arrays[port.role])
        self._context.enqueue()
        if self._carrying:
            for port in self._ports:
                if port.mirror is not None:
                    size = _bytes(port, self._extents)
                    box = Box(width=size, height=1, depth=1, pitch=size, slice_pitch=size)
                    self._device.move(
                        self._address[port.mirror], self._address[port.name], box
                    )
        for port in self._small:
            self._device.download(self.arrays[port.role], self._address[port.name])

    def _view(self, port: Port) -> Array:
        """The port's host twin, made when it is first needed, in this shape."""
        if port.name not in self._twins:
            self._twins[port.name] = self._device.pinned(self._sizes[port.name])
        dims, dtype = _dims(port, self._extents), np.dtype(port.dtype)
        twin = self._twins[port.name][: prod(dims) * dtype.itemsize]
        return twin.view(dtype).reshape(dims)


def extents_of(batch: int, rows: int, asked: int, drafted: int) -> dict[str, int]:
    """`drafted`: rows of the last and of the next tree."""
    return {"B": batch, "N": rows, "R": asked, "P": drafted, "M": drafted}


def _dims(port: Port, extents: Extents) -> list[int]:
    return [d if isinstance(d, int) else extents[d] for d in port.shape]


def _bytes(port: Port, extents: Extents) -> int:
    return prod(_dims(port, extents)) * np.dtype(port.dtype).itemsize
