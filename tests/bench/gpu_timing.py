"""Clocks, budgets and tables of tests/bench/gpu_step.py."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from statistics import median
from typing import Any, ClassVar

import torch

ROUNDS = 5
Calls = Sequence[Callable[[], object]]
"""The same work on different memory, so that it is not found in a cache of the GPU."""


@dataclass(frozen=True)
class Budget:
    """Seconds until no further row is begun."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()


@dataclass
class Table:
    """A table of markdown that prints its rows as they come, and outlives a row that fails."""

    title: str
    head: Sequence[str]
    budget: Budget
    rows: list[str] = field(default_factory=list[str])
    failed: int = 0
    printed: ClassVar[Table | None] = None
    """The table whose row was printed last."""

    @property
    def heading(self) -> str:
        rule = "|" + "---|" * len(self.head)
        return f"\n## {self.title}\n\n| {' | '.join(self.head)} |\n{rule}"

    def row(self, labels: Sequence[object], measure: Callable[[], Sequence[object]]) -> None:
        """Add what `measure` gives behind `labels`; in its place the reason, where it fails."""
        rest = len(self.head) - len(labels)
        try:
            if self.budget.left <= 0:
                raise TimeoutError("out of time")
            cells = [*labels, *measure()]
            if len(cells) != len(self.head):
                raise ValueError(f"{len(cells)} cells for {len(self.head)} columns")
        except Exception as error:  # the table says why, and the next row is tried
            self.failed += 1
            lines = str(error).strip().splitlines() or [""]
            why = f"not measured: {type(error).__name__}: {lines[0][:160]}".replace("|", "/")
            cells = [*labels, why, *[""] * (rest - 1)]
        self.rows.append("| " + " | ".join(map(show, cells)) + " |")
        if Table.printed is not self:
            Table.printed = self
            print(self.heading)
        print(self.rows[-1], flush=True)

    @property
    def text(self) -> str:
        return "\n".join([self.heading, *self.rows])


def show(cell: object) -> str:
    """A cell: None is what was not timed."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)


@dataclass(frozen=True)
class Timer:
    """Microseconds per call on a device; on the CPU everything runs once and nothing is timed."""

    device: str

    @property
    def real(self) -> bool:
        return self.device == "cuda"

    def events(self, variants: Mapping[str, Calls]) -> dict[str, float | None]:
        """Median of ROUNDS rounds of many launches between two CUDA events, the variants in turn:
        what a caller in Python sees, launching included."""
        return self._rounds({name: self._loop(calls) for name, calls in variants.items()})

    def graphs(self, variants: Mapping[str, Calls]) -> dict[str, float | None]:
        """The same launches recorded in a CUDA graph and replayed: the GPU's own time."""
        return self._rounds({name: self._graph(calls) for name, calls in variants.items()})

    def _rounds(
        self, loops: Mapping[str, tuple[Callable[[], object], int]]
    ) -> dict[str, float | None]:
        if not self.real:
            return dict.fromkeys(loops)
        taken: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(ROUNDS):
            for name, (loop, count) in loops.items():
                taken[name].append(self._between(loop) / count)
        return {name: median(times) for name, times in taken.items()}

    def _loop(self, calls: Calls) -> tuple[Callable[[], object], int]:
        for call in calls:  # compiles, and touches every set once
            call()
        if not self.real:
            return lambda: None, 1
        torch.cuda.synchronize()
        once = max(self._between(calls[0]), 1.0)
        count = int(min(max(4000 / once, 3), 400))
        return lambda: [calls[i % len(calls)]() for i in range(count)], count

    def _graph(self, calls: Calls) -> tuple[Callable[[], object], int]:
        loop, count = self._loop(calls)
        if not self.real:
            return loop, count
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loop()
        graph.replay()
        return graph.replay, count

    def _between(self, work: Callable[[], object]) -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) * 1e3


def copy_bandwidth(timer: Timer) -> float | None:
    """Bytes per second of a device-to-device copy of 1 GB, reads and writes counted."""
    size = 1 << 30 if timer.real else 1 << 10
    source = torch.ones(size, dtype=torch.uint8, device=timer.device)
    target = torch.empty_like(source)
    taken = timer.events({"copy": [lambda: target.copy_(source)]})["copy"]
    return None if taken is None else 2 * size / taken * 1e6


def machine(device: str) -> str:
    """The GPU, its driver's CUDA and the versions that matter, on one line."""
    names = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "numpy")
    found = [platform.processor() or platform.machine(), f"Python {platform.python_version()}"]
    if device == "cuda":
        about: Any = torch.cuda.get_device_properties(0)
        memory = about.total_memory / (1 << 30)
        found.insert(0, f"{about.name}, {about.multi_processor_count} SM, {memory:.0f} GiB")
        found.append(f"CUDA {torch.version.cuda}")
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, time.strftime("%Y-%m-%d")])
