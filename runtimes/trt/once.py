"""A host that runs once, on the GPU: arrays in, one run of its engine, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock

import numpy as np

from graftline.errors import RequestError
from graftline.ports import Port
from graftline.runtimes.trt.device import Array, Device, Enqueue
from graftline.runtimes.trt.plan import EnginePlan

Dims = tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies on the device, and its twin in page-locked memory of the host."""

    address: int
    twin: Array


class TrtOnce:
    """An engine with one profile. Runs of one shape find their memory where the last one left it,
    and are recorded as a CUDA graph after the first, if the engine allows it. Threads may share
    it: they wait for one another."""

    def __init__(self, device: Device, plan: EnginePlan, ports: Sequence[Port]) -> None:
        (self._profile,) = plan.profiles.values()
        self._device, self._ports = device, {p.name: p for p in ports}
        fixed = all(least == most for least, _, most in self._profile.values())
        self._context = device.context(0, fixed)
        self._shapes: Mapping[str, Dims] = {}
        self._places: dict[str, _Place] = {}
        self._warm = False
        self._replay: Enqueue | None = None
        self._lock = Lock()

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names. Raises RequestError for a size that the engine was not built
        for, and BackendError."""
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        for name, shape in shapes.items():
            self._check(self._ports[name], shape)
        with self._lock:
            if shapes != self._shapes:
                self._shape(shapes)
            for name, array in feed.items():
                self._places[name].twin[...] = array
            self._run()
            return [self._places[name].twin.copy() for name in names]

    def _check(self, port: Port, shape: Dims) -> None:
        least, _, most = self._profile[port.name]
        if any(not a <= d <= b for a, d, b in zip(least, shape, most, strict=True)):
            raise RequestError(
                f"{port.role} '{port.name}' is {list(shape)}, and the engine was built for {least} "
                f"to {most}; rebuild it with other sizes: --engine size.NAME=32..64"
            )

    def _shape(self, shapes: Mapping[str, Dims]) -> None:
        """Make ready for runs of this shape, which alone a CUDA graph holds."""
        for place in self._places.values():
            self._device.release(place.address)
        self._places, self._shapes = {}, {}
        self._warm, self._replay = False, None
        for name, shape in shapes.items():
            self._place(self._ports[name], shape)
        for port in self._ports.values():
            if port.direction == "out":
                self._place(port, self._context.shape(port.name))
        self._shapes = shapes

    def _place(self, port: Port, shape: Dims) -> None:
        dtype = np.dtype(port.dtype)
        size = prod(shape) * dtype.itemsize
        twin = self._device.pinned(size).view(dtype).reshape(shape)
        place = self._places[port.name] = _Place(self._device.allocate(size), twin)
        self._context.bind(port.name, place.address, shape)

    def _run(self) -> None:
        if self._replay is None and self._warm and self._context.recordable():
            self._replay = self._device.capture(self._enqueue)
        (self._replay or self._enqueue)()
        self._warm = True
        self._device.synchronize()

    def _enqueue(self) -> None:
        for name in self._shapes:
            self._device.upload(self._places[name].address, self._places[name].twin)
        self._context.enqueue()
        for name in self._places.keys() - self._shapes.keys():
            self._device.download(self._places[name].twin, self._places[name].address)
