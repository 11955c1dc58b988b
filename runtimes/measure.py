"""What a step of q rows costs here: measured once per bundle, machine and number of threads."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from statistics import median

import numpy as np

from graftline.runtimes.session import Session

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of rows that are measured; others are interpolated."""
ROUNDS = 7
PAST = 256
"""Committed positions during the measurement, where the capacity allows."""


def measure_costs(session: Session) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by number of rows: `{"chain": {"1": ms, ...}, "tree": {...}}`.

    Rounds over all sizes in turn, so that a machine whose speed drifts changes every size alike;
    the
    median of each. A tree is measured only where the session scores trees.
    """
    random = np.random.default_rng(0)
    past = min(PAST, session.capacity // 2)
    session.reset(1)
    session.prefill([random.integers(0, session.facts.vocabulary, past, dtype=np.int64)])
    sizes = [q for q in ROWS if q <= session.capacity - past]
    shapes = [("chain", q) for q in sizes]
    if session.supports_trees:
        shapes += [("tree", q) for q in sizes[1:]]
    times: dict[tuple[str, int], list[float]] = {s: [] for s in shapes}
    for _ in range(ROUNDS):
        for kind, rows in shapes:
            times[kind, rows].append(_step(session, kind, rows, random))
    session.reset(1)
    costs: dict[str, dict[str, float]] = {"chain": {}, "tree": {}}
    for (kind, rows), taken in times.items():
        costs[kind][str(rows)] = median(taken) * 1e3
    if session.supports_trees:
        costs["tree"]["1"] = costs["chain"]["1"]
    return costs


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
