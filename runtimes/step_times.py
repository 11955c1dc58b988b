"""What a step of q rows costs here: measured once per bundle, machine and number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.random import Generator

from graftline.runtimes.control.costs import FAR, NEAR, Table
from graftline.runtimes.session import Ints, Session

ROWS, FAR_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), (1, 2, 4, 8, 16, 32)
"""Rows that are measured behind NEAR positions and again behind FAR; others are interpolated."""
BATCHES, BATCH_ROWS = (4, 8), (1, 2, 4)
"""Numbers of sequences that are measured together, and of the rows of each."""
ROUNDS = 9


def measure_costs(
    session: Session, beside: Callable[[int], Session] | None = None
) -> dict[str, Any]:
    """Milliseconds of a step by number of rows and sequences, as `Costs.from_json` reads them.

    Rounds over all sizes in turn, each step just after one of a single row a sequence, as it is in
    use: what ran before decides what the processor's caches hold. A size costs what it takes
    undisturbed, single rows in the same rounds likewise: a machine that is busy hits long steps
    more often than short ones, so that their usual ratio would be too large. Trees are measured
    where the session scores trees, a long past where the capacity allows for one.

    `beside` opens the same engine with caches of its own, of so many positions: long pasts and
    batches are then measured in turn with the short one. Without it they are after it, and batches
    only where the session has its seats' memory already.
    """
    random, most = np.random.default_rng(0), session.most_sequences or (8 if beside else 0)
    near = min(NEAR, session.capacity // 2)
    settings = [("chain", 1, near, [rows for rows in ROWS if near + rows <= session.capacity])]
    if session.capacity >= FAR + FAR_ROWS[-1]:
        settings.append(("far", 1, FAR, list(FAR_ROWS)))
    if near + BATCH_ROWS[-1] <= session.capacity:
        settings += [(str(n), n, near, list(BATCH_ROWS)) for n in BATCHES if n <= most]
    gauges: dict[str, Gauge] = {}
    for part in [settings] if beside else [[setting] for setting in settings]:
        for name, batch, past, rows in part:
            own = session if not gauges or beside is None else beside(past + max(rows))
            gauges[name] = Gauge(own, batch, past, rows, random)
        for name, *_ in ROUNDS * part:
            gauges[name].turn()
    session.reset(1)
    tables = {name: gauge.table("chain") for name, gauge in gauges.items()}
    return {"far": {}, "tree": gauges["chain"].table("tree")} | tables


class Gauge:
    """Times steps of some numbers of rows of each of `batch` sequences behind `past` positions."""

    def __init__(
        self, session: Session, batch: int, past: int, sizes: Sequence[int], random: Generator
    ) -> None:
        self._session, self._batch, self._random = session, batch, random
        session.reset(batch)
        session.prefill(list(self._tokens(past)))
        trees = session.supports_trees and batch == 1 and past <= NEAR
        kinds = ("chain", "tree") if trees else ("chain",)
        self._times = {(kind, q): list[float]() for kind in kinds for q in sizes if q > 1}
        self._single: list[float] = []

    def turn(self) -> None:
        """Once every size."""
        for (kind, rows), times in self._times.items():
            self._step("chain", 1)
            self._single.append(self._step("chain", 1))
            times.append(self._step(kind, rows))

    def table(self, kind: str) -> Table:
        """Milliseconds by rows; no size costs more than a larger one. Where two contradict, the
        smaller time is taken: disturbances only add, and what is believed too cheap is drafted and
        then charged (`Pace`), while what is believed too expensive would never be tried."""
        several = {rows: times for (k, rows), times in self._times.items() if k == kind}
        found = {rows: 1e3 * undisturbed(t) for rows, t in {1: self._single, **several}.items()}
        falling = list(accumulate(reversed(found.values()), min))
        return dict(zip(found, reversed(falling), strict=True))

    def _tokens(self, rows: int) -> Ints:
        vocabulary = self._session.facts.vocabulary
        return self._random.integers(0, vocabulary, (self._batch, rows), dtype=np.int64)

    def _step(self, kind: str, rows: int) -> float:
        tokens, depth, mask = self._tokens(rows), None, None
        if kind == "tree":  # all rows behind the root
            depth = np.minimum(np.arange(rows), 1)[None]
            mask = np.eye(rows, dtype=np.bool_)[None]
            mask[0, :, 0] = True
        began = time.perf_counter()
        self._session.score(tokens, depth, mask)
        return time.perf_counter() - began


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: whatever else runs on the machine only adds."""
    return sorted(times)[len(times) // 4]
