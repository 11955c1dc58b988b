"""Steps of several sequences in one call, by a graph that pack-rows has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from graftline.errors import BackendError
from graftline.ports import STREAM, Port, by_role, slot_ports
from graftline.runtimes.ort.step_arrays import OutputMemory, known_by
from graftline.runtimes.session import Floats, Ints, Scores

Array = npt.NDArray[Any]
IDLE_SLOTS = 1
"""Slots of the cache of a place that no sequence takes: its one row, whose result nobody reads."""


@dataclass(frozen=True)
class PackedGraph:
    """An opened graph for the rows of `sequences` sequences."""

    engine: Any
    ports: tuple[Port, ...]

    @property
    def sequences(self) -> int:
        """How many it takes; none of them without a row."""
        return int(by_role(self.ports, "counts", "in")[0].shape[0])

    def caches(self, of: Sequence[Port]) -> list[list[tuple[Port, str]]]:
        """For each sequence its caches' outputs, with the name that the same one has in `of`."""
        names = {(p.role, p.layer): p.name for p in slot_ports(of, "out")}
        found: list[list[tuple[Port, str]]] = [[] for _ in range(self.sequences)]
        seen: dict[tuple[str, int | None], int] = {}
        for port in slot_ports(self.ports, "out"):
            key = port.role, port.layer
            place = seen[key] = seen.get(key, -1) + 1
            found[place].append((port, names[key]))
        return found


@dataclass(frozen=True)
class _Rows:
    """The arrays of a call of N rows in all, by port name; as ONNX Runtime takes them too."""

    arrays: Mapping[str, Array]
    values: Mapping[str, Any]


class PackedCall:
    """A graph bound to the caches of some sequences. Calls of other numbers of rows bind a few
    small arrays anew, and the caches never."""

    def __init__(
        self,
        graph: PackedGraph,
        ports: Sequence[Port],
        caches: Sequence[Mapping[str, Array]],
        memory: OutputMemory,
    ) -> None:
        """`caches`: of each sequence, views [1, K, S, D] by the names that `ports` have for them.
        Places of the graph that no sequence takes get one row each, that nobody reads."""
        self._graph, self._memory = graph, memory
        self._run = graph.engine.run_with_iobinding
        self._binding: Any = graph.engine.io_binding()
        self._taken = len(caches)
        self._sized: dict[int, _Rows] = {}
        self._bound: _Rows | None = None
        ins = [p for p in graph.ports if p.direction == "in" and p.state == ""]
        self._roles = {p.role: p.name for p in ins}
        self._reads = STREAM if STREAM in self._roles else "tokens"
        sizes = {p.name: np.zeros(graph.sequences, np.int64) for p in ins if len(p.shape) == 1}
        self._index = sizes[self._roles["write_index"]]
        self._counts = sizes[self._roles["counts"]]
        self._counts[self._taken :] = 1
        for name, array in sizes.items():
            self._binding.bind_ortvalue_input(name, _value(array))
        idle: dict[tuple[Any, ...], Any] = {}
        for place, outputs in enumerate(graph.caches(ports)):
            for port, name in outputs:
                if place < self._taken:
                    value = _value(caches[place][name])
                else:
                    shape = 1, int(port.shape[1]), IDLE_SLOTS, int(port.shape[3])
                    key = *shape, port.dtype
                    value = idle.setdefault(key, _value(np.zeros(shape, port.dtype)))
                self._binding.bind_ortvalue_input(port.mirror, value)
                self._binding.bind_ortvalue_output(port.name, value)

    def __call__(
        self, given: Sequence[Ints] | Sequence[Floats], starts: Sequence[int]
    ) -> dict[str, Array]:
        """Score chains: of each sequence its new tokens [N], or the hidden states [N, H] where the
        graph reads those in their place, and the slot that the first is written to. Outputs as
        `known_by` says, [1, all rows, ...], one sequence behind the other.

        Raises BackendError with ONNX Runtime's own reason.
        """
        idle = len(self._counts) - self._taken
        total = sum(map(len, given)) + idle
        rows = self._rows(total)
        positions = rows.arrays[self._roles["positions"]][0]
        read, at = rows.arrays[self._roles[self._reads]][0], 0
        for place, (part, start) in enumerate(zip(given, starts, strict=True)):
            count = len(part)
            read[at : at + count] = part
            positions[at : at + count] = np.arange(start, start + count)
            self._index[place], self._counts[place] = start, count
            at += count
        read[at:] = positions[at:] = 0
        try:
            self._run(self._binding)
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in a step: {error}") from error
        outs = (p for p in self._graph.ports if p.direction == "out" and p.state == "")
        return {known_by(p): rows.arrays[p.name] for p in outs}

    def _rows(self, total: int) -> _Rows:
        rows = self._sized.get(total)
        if rows is None:
            rows = self._sized[total] = self._made(total)
        if rows is not self._bound:
            for port in self._graph.ports:
                if port.name in rows.values:
                    bind = self._binding.bind_ortvalue_input
                    if port.direction == "out":
                        bind = self._binding.bind_ortvalue_output
                    bind(port.name, rows.values[port.name])
            self._bound = rows
        return rows

    def _made(self, total: int) -> _Rows:
        arrays: dict[str, Array] = {}
        for port in self._graph.ports:
            if port.state or len(port.shape) < 2:
                continue
            shape = [d if isinstance(d, int) else total for d in port.shape]
            if port.direction == "out":
                arrays[port.name] = self._memory.of(port.name, shape, np.dtype(port.dtype))
            else:
                arrays[port.name] = np.zeros(shape, port.dtype)
            if port.role == "rows":
                arrays[port.name][0] = np.arange(total)
        return _Rows(arrays, {name: _value(array) for name, array in arrays.items()})


def of_rows(scores: Scores, rows: slice) -> Scores:
    """Some rows of the scores of one sequence: views."""
    return Scores.of({key: part[:, rows] for key, part in scores.parts().items()})


def regrouped(scores: Scores, batch: int) -> Scores:
    """Scores [1, B * N, ...] of sequences that have N rows each, as [B, N, ...]: views."""
    parts = scores.parts().items()
    return Scores.of({key: part.reshape(batch, -1, *part.shape[2:]) for key, part in parts})


def _value(array: Array) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
