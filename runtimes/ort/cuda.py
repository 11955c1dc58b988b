"""The `ort-cuda` session: ONNX Runtime on an NVIDIA GPU, with caches that never leave it.

A step copies its few integers to the GPU and brings back what verification reads; logits follow
only when somebody looks at them. With `device="cpu"` the same code runs on the CPU provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from graftline.errors import BackendError
from graftline.facts import DecoderFacts
from graftline.ports import FEATURES, Port
from graftline.runtimes.ort.calls import MOST_ROWS
from graftline.runtimes.ort.commit import CommitGraph, CopyGraph, SlotGraphs
from graftline.runtimes.ort.forms import NO_FORMS, Forms
from graftline.runtimes.ort.provider import open_on
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.step_arrays import STEP_INTS, OutputMemory, StepArrays, known_by
from graftline.runtimes.scores import DeviceScores
from graftline.runtimes.session import Ints, Scores, Snapshot
from graftline.targets import CPU, CUDA

READ_LATER = "logits"
"""The one output that is large: vocabulary numbers per row."""


@dataclass
class _Block:
    """Caches of one shape, [caches, B, heads, slots, size], as one piece of device memory."""

    ports: list[Port]
    memory: Any
    shape: tuple[int, ...]
    kind: int
    """ONNX element type."""
    itemsize: int

    def address(self, port: Port, row: int) -> int:
        """Where the cache of `port` begins for sequence `row`."""
        place = self.ports.index(port) * self.shape[1] + row
        return int(self.memory.data_ptr()) + place * prod(self.shape[2:]) * self.itemsize


@dataclass(frozen=True)
class _DeviceSlots:
    """Some slots of one sequence, [1, heads, slots, size] for every cache, on the device."""

    values: list[Any]
    nbytes: int


@dataclass(kw_only=True)
class _DeviceArrays(StepArrays):
    """The bound arrays of one call shape, and where the step's inputs and logits lie on the
    device."""

    inputs: dict[str, tuple[npt.NDArray[Any], Any]]
    logits: Any


class CudaSession(OrtSession):
    """A decoder lowered for CUDA. See `runtimes.session.Session`.

    Raises BackendError when the provider is missing, and when it would leave work to the CPU.
    """

    def __init__(
        self,
        graph: Path,
        facts: DecoderFacts,
        ports: Sequence[Port],
        *,
        capacity: int | None = None,
        threads: int | None = None,
        device: str = "cuda",
        forms: Forms = NO_FORMS,
    ) -> None:
        self.device = device
        self._device_memory: list[_Block] = []
        self._commits: CommitGraph | None = None
        self._copies: CopyGraph | None = None
        self._slots: SlotGraphs | None = None
        super().__init__(graph, facts, ports, capacity=capacity, threads=threads, forms=forms)

    def _open(self) -> Any:
        session = open_on(self.device, self._graph, self.threads)
        wanted = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
        # an input that only shape arithmetic reads is wanted in the CPU's memory
        self._places = {
            port.name: "cuda" if info.name == "Cuda" else "cpu" for port, info in wanted
        }
        return session

    def sibling(self, host: OrtSession | None = None, capacity: int | None = None) -> OrtSession:
        """See `OrtSession.sibling`: caches of its own, or those of a session on the same device."""
        other = copy(self)
        other._calls, other._guests, other._device_memory = {}, [], []
        other._outputs, other._together = OutputMemory(), OutputMemory()
        other._lengths = np.zeros(0, np.int64)
        if host is None:
            other.capacity = min(capacity or self.capacity, self.capacity)
            other.reset(1)
            return other
        if not isinstance(host, CudaSession) or host._layout != self._layout:
            raise BackendError(
                "these two engines have caches of different shapes, which cannot be shared"
            )
        other.capacity, other._device_memory = host.capacity, host._device_memory
        host._guests.append(other)
        return other

    @property
    def _layout(self) -> list[tuple[object, ...]]:
        return [(self.device, p.name, p.shape, p.dtype) for p in self._caches]

    def caches(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """Raises BackendError: the caches lie on the device."""
        raise BackendError(f"the caches of sequence {row} are on the GPU and have no arrays here")

    @property
    def _room(self) -> int:
        """Sequences that there is memory for."""
        return self._device_memory[0].shape[1] if self._device_memory else 0

    def leave(self, row: int) -> None:
        """Forget sequence `row`; the last one's keys and values are copied there, on the device."""
        last = len(self._lengths) - 1
        if row != last:
            for block in self._device_memory:
                for port in block.ports:
                    self._copy(block, block.address(port, last), block.address(port, row), 1)
            self._lengths[row] = self._lengths[last]
        self._lengths = self._lengths[:last].copy()

    def _copy(self, block: _Block, source: int, to: int, rows: int) -> None:
        """Copy all slots of that many sequences of one cache."""
        self._copies = self._copies or CopyGraph(self.device, self.threads)
        self._copies.run(source, to, rows * prod(block.shape[2:]), block.kind)

    def _make_room(self, batch: int, held: Ints) -> None:
        """Memory doubles when it does not suffice, and what sequences have is copied."""
        if batch <= self._room:
            return
        rows = len(held)
        before = list(self._device_memory) if rows else []  # else freed before more is asked for
        self._allocate(max(batch, 2 * self._room))
        for old, new in zip(before, self._device_memory, strict=False):
            for port in new.ports if rows else ():
                self._copy(new, old.address(port, 0), new.address(port, 0), rows)

    def _allocate(self, batch: int) -> None:
        self._calls.clear()
        groups: dict[tuple[int, int, str], list[Port]] = {}
        for port in self._caches:
            groups.setdefault((int(port.shape[1]), int(port.shape[3]), port.dtype), []).append(port)
        self._device_memory.clear()  # guests hold the same list
        for guest in self._guests:
            guest._calls.clear()
        slots = self.capacity + MOST_ROWS
        for (heads, size, dtype), ports in groups.items():
            shape = (len(ports), batch, heads, slots, size)
            numbers = np.dtype(dtype)
            kind = onnx.helper.np_dtype_to_tensor_dtype(numbers)
            zeros = np.zeros(prod(shape) * numbers.itemsize, np.uint8)
            memory = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self.device, 0)
            self._device_memory.append(_Block(ports, memory, shape, kind, numbers.itemsize))

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the rows in each path, moved together behind the committed ones, on the device."""
        moved = [tuple(path) != tuple(range(len(path))) for path in paths]
        if any(moved):
            most = max(len(path) for path in paths)
            path = np.full((self._room, most), -1, np.int64)
            count, lengths = np.zeros((2, self._room), np.int64)
            lengths[: len(paths)] = self._lengths
            for row, nodes in enumerate(paths):
                path[row, : len(nodes)] = nodes
                count[row] = len(nodes) if moved[row] else 0
            if self._commits is None:
                self._commits = CommitGraph(self.device, self.threads)
            for block in self._device_memory:
                shape = (block.shape[0] * block.shape[1], *block.shape[2:])
                address = int(block.memory.data_ptr())
                self._commits.run(address, shape, block.kind, path, count, lengths)
        self._lengths += np.array([len(path) for path in paths], np.int64)

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """A copy of committed slots, on the device. See `Session.snapshot`."""
        values: list[Any] = []
        self._slots = self._slots or SlotGraphs(self.device, self.threads)
        nbytes = 0
        for block in self._device_memory:
            _, _, heads, slots, size = block.shape
            nbytes += len(block.ports) * heads * (stop - start) * size * block.itemsize
            for port in block.ports:
                value = _empty((1, heads, stop - start, size), np.dtype(port.dtype), self.device)
                address = block.address(port, row)
                self._slots.cut(address, (1, heads, slots, size), start, value, block.kind)
                values.append(value)
        return _DeviceSlots(values, nbytes)

    def restore(self, row: int, kept: Snapshot, count: int) -> None:
        """Commit the positions of a copy. See `Session.restore`."""
        assert isinstance(kept, _DeviceSlots), "a snapshot of another kind of session"
        self._slots = self._slots or SlotGraphs(self.device, self.threads)
        places = [(block, port) for block in self._device_memory for port in block.ports]
        for (block, port), value in zip(places, kept.values, strict=True):
            shape, start = (1, *block.shape[2:]), int(self._lengths[row])
            address = block.address(port, row)
            self._slots.put(address, shape, start, value, count, block.kind)
        self._lengths[row] += count

    def _bind(
        self, batch: int, count: int, asked: int, row: int, chains: bool
    ) -> _DeviceArrays:
        assert not chains, "a graph without a mask is the CPU's alone"
        binding = self._session.io_binding()
        host = self._step_inputs(batch, count, asked, masked=self._tree)
        inputs: dict[str, tuple[npt.NDArray[Any], Any]] = {}
        for port in self.ports:
            if port.direction == "in" and port.state == "" and port.role in host:
                array = host[port.role]
                value = _empty(array.shape, array.dtype, self._places[port.name])
                binding.bind_ortvalue_input(port.name, value)
                inputs[port.name] = (array, value)
        for block in self._device_memory:
            shape = [batch, *block.shape[2:]]
            for port in block.ports:
                where = (self.device, 0, block.kind, shape, block.address(port, row))
                binding.bind_input(port.mirror, *where)
                binding.bind_output(port.name, *where)
        outputs: dict[str, npt.NDArray[Any]] = {}
        known: dict[str | int, int] = {"B": batch, "N": count, "R": asked}
        logits: Any = None
        for port in self.ports:
            if port.direction == "out" and port.mirror is None:
                shape = [d if isinstance(d, int) else known[d] for d in port.shape]
                if port.role == READ_LATER:
                    logits = _empty(shape, np.dtype(port.dtype), self.device)
                    binding.bind_ortvalue_output(port.name, logits)
                    continue
                array = self._outputs.of(port.name, shape, np.dtype(port.dtype))
                outputs[known_by(port)] = array
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
                binding.bind_ortvalue_output(port.name, value)
        tokens, positions, write_index, rows = (host[n] for n in STEP_INTS)
        return _DeviceArrays(
            self._session.run_with_iobinding, binding, tokens, positions, write_index, rows,
            host.get("mask"), outputs, inputs=inputs, logits=logits, features=host.get(FEATURES),
        )  # fmt: skip

    def _run(self, call: StepArrays) -> Scores:
        assert isinstance(call, _DeviceArrays)
        self._turn += 1
        for array, value in call.inputs.values():
            value.update_inplace(array)
        try:
            call.run(call.binding)
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in a step: {error}") from error
        self._last = call

        read = self._of_this_call(lambda: call.of_rows(call.logits.numpy()))

        argmax = call.asked("argmax")
        argmax = read().argmax(-1) if argmax is None else argmax
        top, values, gap = (call.asked(n) for n in ("topk_ids", "topk_logits", "top_gap"))
        taps = self._lazy(lambda name: call.of_rows(call.outputs[name]))  # on the host
        return DeviceScores(argmax, top, values, gap, read, taps)


def _empty(shape: Sequence[int], dtype: Any, device: str) -> Any:
    """Device memory of a shape; what it holds is undefined until it is written."""
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)


SESSIONS: dict[str, type[OrtSession]] = {CPU: OrtSession, CUDA: CudaSession}
"""By target."""
