"""What a step of q rows costs here: measured once per bundle, machine and number of threads."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from graftline.runtimes.control.costs import FAR, NEAR
from graftline.runtimes.session import Session

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of rows that are measured; others are interpolated."""
FAR_ROWS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows that are measured again after a long past."""
FAR_SLOTS = FAR + FAR_ROWS[-1]
"""Positions that measuring a long past takes."""
ROUNDS = 5
SMALL, TIMES = 8, 3
"""Sizes up to which decisions are close and steps are short are measured so many times as often."""


def measure_costs(session: Session, twin: Session | None = None) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by number of rows, as `Costs.from_json` reads them.

    Rounds over all sizes in turn, each step just after one of a single row, as it is in use: what
    ran before decides what the processor's caches hold. A size costs the usual ratio to the single
    row beside it, so that a machine whose speed drifts changes nothing, times what a single row
    takes undisturbed. No size costs less than a smaller one. Trees are measured only where the
    session scores trees, a long past only where the capacity allows for one: on `twin`, the same
    engine with caches of its own, in turn with the short one; without a twin after it.
    """
    random = np.random.default_rng(0)
    past = min(NEAR, session.capacity // 2)
    sizes = [q for q in ROWS if q <= session.capacity - past]
    near, far = Gauge(session, past, sizes, random), None
    if session.capacity >= FAR_SLOTS and twin is not None:
        far = Gauge(twin, FAR, FAR_ROWS, random)
        for _ in range(ROUNDS):
            near.turns(1)
            far.turns(1)
    else:
        near.turns(ROUNDS)
        if session.capacity >= FAR_SLOTS:
            far = Gauge(session, FAR, FAR_ROWS, random)
            far.turns(ROUNDS)
    session.reset(1)
    distant = {} if far is None else far.table()
    return near.table() | {f"far_{kind}": table for kind, table in distant.items()}


class Gauge:
    """Times steps of some sizes behind `past` committed positions of a session."""

    def __init__(
        self, session: Session, past: int, sizes: Sequence[int], random: np.random.Generator
    ) -> None:
        self._session, self._random = session, random
        session.reset(1)
        session.prefill([random.integers(0, session.facts.vocabulary, past, dtype=np.int64)])
        shapes = [("chain", q) for q in sizes if q > 1]
        if session.supports_trees:
            shapes += [("tree", q) for q in sizes if q > 1]
        self._ratios: dict[tuple[str, int], list[float]] = {shape: [] for shape in shapes}
        self._single: list[float] = []

    def turns(self, count: int) -> None:
        """So many times every size, and small ones TIMES as often."""
        shapes = list(self._ratios)
        small = [shape for shape in shapes if shape[1] <= SMALL]
        for turn in range(count * TIMES):
            for kind, rows in small if turn % TIMES else shapes:
                _step(self._session, "chain", 1, self._random)
                single = _step(self._session, "chain", 1, self._random)
                self._single.append(single)
                taken = _step(self._session, kind, rows, self._random)
                self._ratios[kind, rows].append(taken / single)

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


def _step(session: Session, kind: str, rows: int, random: np.random.Generator) -> float:
    tokens = random.integers(0, session.facts.vocabulary, (1, rows), dtype=np.int64)
    depth = mask = None
    if kind == "tree":
        depth = np.minimum(np.arange(rows), 1)[None]
        mask = np.eye(rows, dtype=np.bool_)[None]
        mask[0, :, 0] = True
    began = time.perf_counter()
    session.score(tokens, depth, mask)
    return time.perf_counter() - began


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
