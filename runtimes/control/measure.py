"""What a step of q rows costs here: measured once per bundle, machine and number of threads."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from graftline.runtimes.control.costs import FAR, NEAR
from graftline.runtimes.session import Session

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of rows that are measured; others are interpolated."""
FAR_ROWS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows that are measured again after a long past."""
FAR_SLOTS = FAR + FAR_ROWS[-1]
"""Positions that measuring a long past takes."""
BATCHES, BATCH_ROWS = (4, 8), (1, 2, 4)
"""Numbers of sequences that are measured together, and of the rows of each."""
ROUNDS = 5
SMALL, TIMES = 8, 3
"""Sizes up to which decisions are close and steps are short are measured so many times as often."""


def measure_costs(
    session: Session, beside: Callable[[int], Session] | None = None
) -> dict[str, Any]:
    """Milliseconds of a step by number of rows and sequences, as `Costs.from_json` reads them.

    Rounds over all sizes in turn, each step just after one of a single row a sequence, as it is in
    use: what ran before decides what the processor's caches hold. A size costs the usual ratio to
    the single row beside it, so that a machine whose speed drifts changes nothing, times what a
    single row takes undisturbed. No size costs less than a smaller one. Trees are measured only
    where the session scores trees, a long past only where the capacity allows for one.

    `beside` opens the same engine with caches of its own, of so many positions: long pasts and
    batches are then measured in turn with the short one. Without it they are after it, and batches
    only where the session has its seats' memory already.
    """
    random = np.random.default_rng(0)
    past = min(NEAR, session.capacity // 2)
    sizes = [q for q in ROWS if q <= session.capacity - past]
    most = session.most_sequences
    together = [n for n in BATCHES if n <= (most or (n if beside else 0)) and max(sizes) >= 4]
    plans = [(FAR, FAR_ROWS, 1)] if session.capacity >= FAR_SLOTS else []
    plans += [(past, BATCH_ROWS, batch) for batch in together]
    gauges = [Gauge(session, past, sizes, random)]
    if beside is not None:
        gauges += [Gauge(beside(p + max(q)), p, q, random, batch) for p, q, batch in plans]
        for _ in range(ROUNDS):
            for gauge in gauges:
                gauge.turns(1)
    else:
        gauges[0].turns(ROUNDS)
        for p, q, batch in plans:
            gauges.append(Gauge(session, p, q, random, batch))
            gauges[-1].turns(ROUNDS)
    session.reset(1)
    tables = {gauge.batch: gauge.table() for gauge in gauges[len(gauges) - len(together) :]}
    distant = gauges[1].table() if plans and plans[0][0] == FAR else {"chain": {}, "tree": {}}
    return {
        **gauges[0].table(),
        **{f"far_{kind}": table for kind, table in distant.items()},
        "batch": {str(batch): table["chain"] for batch, table in tables.items()},
    }


class Gauge:
    """Times steps of some sizes behind `past` committed positions of each of `batch` sequences."""

    def __init__(
        self,
        session: Session,
        past: int,
        sizes: Sequence[int],
        random: np.random.Generator,
        batch: int = 1,
    ) -> None:
        self._session, self._random, self.batch = session, random, batch
        session.reset(batch)
        known = session.facts.vocabulary
        session.prefill([random.integers(0, known, past, dtype=np.int64) for _ in range(batch)])
        shapes = [("chain", q) for q in sizes if q > 1]
        if session.supports_trees and batch == 1:
            shapes += [("tree", q) for q in sizes if q > 1]
        self._ratios: dict[tuple[str, int], list[float]] = {shape: [] for shape in shapes}
        self._single: list[float] = []

    def turns(self, count: int) -> None:
        """So many times every size, and small ones TIMES as often."""
        shapes = list(self._ratios)
        small = [shape for shape in shapes if shape[1] * self.batch <= SMALL]
        for turn in range(count * TIMES):
            for kind, rows in small if turn % TIMES else shapes:
                self._step("chain", 1)
                single = self._step("chain", 1)
                self._single.append(single)
                self._ratios[kind, rows].append(self._step(kind, rows) / single)

    def table(self) -> dict[str, dict[str, float]]:
        """`{"chain": {"1": ms, ...}, "tree": {...}}`."""
        row = undisturbed(self._single) * 1e3
        costs: dict[str, dict[str, float]] = {"chain": {}, "tree": {}}
        for kind, table in costs.items():
            found = {rows: median(r) for (k, rows), r in self._ratios.items() if k == kind}
            if found or kind == "chain":
                ratios = rising([1.0, *found.values()])
                pairs = zip((1, *found), ratios, strict=True)
                table |= {str(rows): ratio * row for rows, ratio in pairs}
        return costs

    def _step(self, kind: str, rows: int) -> float:
        shape, depth, mask = (self.batch, rows), None, None
        tokens = self._random.integers(0, self._session.facts.vocabulary, shape, dtype=np.int64)
        if kind == "tree":
            depth = np.minimum(np.arange(rows), 1)[None]
            mask = np.eye(rows, dtype=np.bool_)[None]
            mask[0, :, 0] = True
        began = time.perf_counter()
        self._session.score(tokens, depth, mask)
        return time.perf_counter() - began


def rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls (Barlow 1972, pool adjacent violators); the first value
    stays the least of all: what another row costs is measured beside it."""
    blocks = list[list[float]]()
    for value in values[1:]:
        blocks.append([max(value, values[0]), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, count), (last, more) = blocks[-2], blocks.pop()
            blocks[-1] = [(mean * count + last * more) / (count + more), count + more]
    return [values[0], *(mean for mean, count in blocks for _ in range(int(count)))]


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: whatever else runs on the machine only adds."""
    return sorted(times)[len(times) // 4]


def machine() -> str:
    """What tells one machine's speed from another's: its processor."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{platform.system()} {name}"


def costs_key(threads: int, version: str) -> str:
    """Key under which a bundle keeps its costs."""
    return f"{machine()} threads={threads} onnxruntime={version}"
