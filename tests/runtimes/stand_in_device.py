"""A device of numpy arrays whose engine is the lowered graph on ONNX Runtime's CPU provider.

It does late what a GPU does late: everything is queued, and done when the host waits; what the host
reads before, or changes too early, comes out wrong. Memory that was given back or never given
cannot be touched, and shapes must lie in their profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftline.ports import Port, step_port
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.trt.device import Box

Array = np.ndarray[Any, Any]
BASE, ALIGNMENT = 1 << 20, 256
NAN = 0xFF
"""Bytes of which make NaN, in every float type."""


class StandInContext:
    def __init__(self, device: StandInDevice, shapes: Mapping[str, list[list[int]]]) -> None:
        self.device, self.shapes = device, shapes
        self.bound: dict[str, tuple[int, tuple[int, ...]]] = {}

    def bind(self, name: str, address: int, shape: Sequence[int]) -> None:
        if name in self.shapes:
            least, _, most = self.shapes[name]
            inside = all(a <= d <= b for a, d, b in zip(least, shape, most, strict=True))
            assert inside, f"{name}: {list(shape)} is not in {least} .. {most}"
        self.bound[name] = address, tuple(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.device.shape(name, self.bound)

    def enqueue(self) -> None:
        bound = dict(self.bound)
        self.device.push(lambda: self.device.execute(bound))

    def recordable(self) -> bool:
        return self.device.recordable


class StandInDevice:
    name = "stand-in"
    recordable = True

    def __init__(
        self,
        graph: Path,
        ports: Sequence[Port],
        profiles: Mapping[str, Any],
        size: int = 1 << 23,
        beside: StandInDevice | None = None,
    ) -> None:
        """`beside`: another engine on the same GPU, whose memory this one may be bound to."""
        self.ports, self.profiles = ports, list(profiles.values())
        self.gpu = self if beside is None else beside.gpu
        self.memory = np.full(size, NAN, np.uint8) if beside is None else beside.memory
        self.live: dict[int, int] = {} if beside is None else beside.live
        self.end = 0
        self.host: list[Array] = []
        self.contexts: dict[int, StandInContext] = {}
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.runs = self.launches = self.moves = self.columns = 0
        self.fetched: list[int] = []
        self._engine: Any = open_graph(graph, threads=1)

    def allocate(self, size: int) -> int:
        start = -(-self.gpu.end // ALIGNMENT) * ALIGNMENT
        self.gpu.end = start + size
        assert self.gpu.end <= len(self.memory), "the stand-in's memory is full"
        self.memory[start : self.gpu.end] = 0
        self.live[start + BASE] = size
        return start + BASE

    def release(self, address: int) -> None:
        size = self.live.pop(address)
        self.memory[address - BASE : address - BASE + size] = NAN

    def pinned(self, size: int) -> Array:
        self.host.append(np.zeros(size, np.uint8))
        return self.host[-1]

    def upload(self, to: int, source: Array) -> None:
        data = self._pinned(source)
        self.push(lambda: self._write(to, data))

    def upload_columns(self, to: int, source: Array, first: int, last: int) -> None:
        assert 0 <= first < last <= source.shape[1]
        self._pinned(source)
        self.columns += last - first
        rows = source.view(np.uint8)

        def work() -> None:
            there = self.view(to, source.nbytes).reshape(rows.shape)
            there[:, first:last] = rows[:, first:last]

        assert source.dtype.itemsize == 1
        self.push(work)

    def download(self, to: Array, source: int) -> None:
        data = self._pinned(to)
        data[:] = NAN
        if self.recording is None:
            self.fetched.append(to.nbytes)

        def work() -> None:
            data[:] = self.view(source, to.nbytes)

        self.push(work)

    def move(self, to: int, source: int, box: Box, laid: Box | None = None) -> None:
        there = laid or box
        assert box.slice_pitch % box.pitch == there.slice_pitch % there.pitch == 0
        same = (there.width, there.height, there.depth) == (box.width, box.height, box.depth)
        assert same, "as many bytes"
        self.moves += 1

        def work() -> None:
            for layer in range(box.depth):
                for head in range(box.height):
                    at = layer * box.slice_pitch + head * box.pitch
                    goes = layer * there.slice_pitch + head * there.pitch
                    self._write(to + goes, self.view(source + at, box.width).copy())

        self.push(work)

    def context(self, profile: int, fixed: bool) -> StandInContext:
        shapes = self.profiles[profile]
        port = step_port(self.ports, self.ports[0].owner)
        rows = [(s[0][1], s[2][1]) for s in (shapes[port.name],)] if port is not None else [
            (s[0], s[2]) for s in shapes.values()
        ]  # fmt: skip
        assert fixed == all(least == most for least, most in rows)
        return self.contexts.setdefault(profile, StandInContext(self, shapes))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        assert self.recording is None
        assert self.runs, "TensorRT must have run once before it is recorded"
        self.recording = []
        work()
        recorded, self.recording = self.recording, None

        def replay() -> None:
            self.launches += 1
            self.queue.extend(recorded)

        return replay

    def synchronize(self) -> None:
        assert self.recording is None
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def push(self, work: Callable[[], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def view(self, address: int, size: int) -> Array:
        """Live device memory; what was never given, or was given back, is refused."""
        inside = any(a <= address and address + size <= a + n for a, n in self.live.items())
        assert inside, f"{size} bytes at {address} are nobody's"
        return self.memory[address - BASE : address - BASE + size]

    def execute(self, bound: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
        self.runs += 1
        known = {p.name: p for p in self.ports}
        assert bound.keys() == known.keys(), "every tensor has an address"
        feed = {n: self._tensor(known[n], *bound[n]) for n in known if known[n].direction == "in"}
        if "mask" in feed:
            assert feed["mask"].any(-1).all(), "a row that sees nothing is NaN on a GPU"
        names = [n for n in known if known[n].direction == "out"]
        places = [bound[n] for n in feed]
        for name, value in zip(names, self._engine.run(names, feed), strict=True):
            mirror = known[name].mirror
            cache = mirror is not None and known[name].role.startswith("cache.")
            assert not cache or bound[mirror][0] == bound[name][0], "a cache has one address"
            assert cache or bound[name][0] not in [a for a, _ in places], "one address, two tensors"
            assert value.shape == bound[name][1], f"{name}: {value.shape}, not {bound[name][1]}"
            self._write(bound[name][0], np.ascontiguousarray(value).reshape(-1).view(np.uint8))

    def shape(self, name: str, bound: Mapping[str, tuple[int, tuple[int, ...]]]) -> tuple[int, ...]:
        inputs = [p for p in self.ports if p.direction == "in"]
        feed = {p.name: np.zeros(bound[p.name][1], np.dtype(p.dtype)) for p in inputs}
        return tuple(self._engine.run([name], feed)[0].shape)

    def _tensor(self, port: Port, address: int, shape: tuple[int, ...]) -> Array:
        dtype = np.dtype(port.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        return self.view(address, size).view(dtype).reshape(shape).copy()

    def _write(self, to: int, data: Array) -> None:
        self.view(to, data.nbytes)[:] = data

    def _pinned(self, array: Array) -> Array:
        assert array.flags.c_contiguous
        assert any(np.shares_memory(array, h) for h in self.host), "this array is not page-locked"
        return array.reshape(-1).view(np.uint8)
