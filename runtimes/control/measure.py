"""What a step of q rows costs here: measured once per bundle, machine and number of threads."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from graftline.runtimes.control.costs import FAR, NEAR
from graftline.runtimes.session import Ints, Session

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of rows that are measured; others are interpolated."""
FAR_ROWS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows that are measured again after a long past."""
ROUNDS, FAR_ROUNDS = 5, 5
SMALL, TIMES = 8, 3
"""Sizes up to which decisions are close and steps are short are measured so many times as often."""


def measure_costs(session: Session) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by number of rows, as `Costs.from_json` reads them.

    Rounds over all sizes in turn, each step just after one of a single row, as it is in use: what
    ran before decides what the processor's caches hold. A size costs the usual ratio to the single
    row beside it, so that a machine whose speed drifts changes nothing, times what a single row
    takes undisturbed. Trees are measured only where the session scores trees, a long past only
    where the capacity allows for one.
    """
    random = np.random.default_rng(0)
    session.reset(1)
    past = min(NEAR, session.capacity // 2)
    session.prefill([_tokens(session, past, random)])
    costs = _measured(session, [q for q in ROWS if q <= session.capacity - past], ROUNDS, random)
    if session.capacity >= FAR + FAR_ROWS[-1]:
        session.reset(1)
        session.prefill([_tokens(session, FAR, random)])
        far = _measured(session, FAR_ROWS, FAR_ROUNDS, random)
        costs |= {f"far_{kind}": table for kind, table in far.items()}
    session.reset(1)
    return costs


def _tokens(session: Session, count: int, random: np.random.Generator) -> Ints:
    return random.integers(0, session.facts.vocabulary, count, dtype=np.int64)


def _measured(
    session: Session, sizes: Sequence[int], rounds: int, random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """`{"chain": {"1": ms, ...}, "tree": {...}}` after what is committed."""
    shapes = [("chain", q) for q in sizes if q > 1]
    if session.supports_trees:
        shapes += [("tree", q) for q in sizes if q > 1]
    ratios: dict[tuple[str, int], list[float]] = {s: [] for s in shapes}
    single: list[float] = []
    small = [shape for shape in shapes if shape[1] <= SMALL]
    for turn in range(rounds * TIMES):
        for kind, rows in small if turn % TIMES else shapes:
            _step(session, "chain", 1, random)
            single.append(_step(session, "chain", 1, random))
            ratios[kind, rows].append(_step(session, kind, rows, random) / single[-1])
    row = undisturbed(single) * 1e3
    costs: dict[str, dict[str, float]] = {"chain": {"1": row}, "tree": {}}
    for (kind, rows), found in ratios.items():
        costs[kind][str(rows)] = median(found) * row
    if session.supports_trees:
        costs["tree"]["1"] = row
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
