"""`make fuzz`: many seeds, their outcomes by feature, and a command for each that failed.

    python -m tests.generated.fuzz --count 400 --seed 0 [--workers 2] [--keep FILE] [--choose 40]

Exits 1 when an outcome is silent or a crash. Ctrl-C prints what is known so far, and how far it
came, and exits 130.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

KINDS = ("equal", "refused", "silent", "crash")
FAULTS = ("silent", "crash", "defect")
INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended."""


@dataclass(frozen=True)
class Row:
    """What became of one seed. `kind` is an outcome's, or "defect" of the generator."""

    seed: int
    kind: str
    line: str
    features: list[str]
    near_ties: list[float] = field(default_factory=list)


def one(seed: int) -> Row:
    """Run one seed in a folder of its own."""
    from tests.generated.draw import draw
    from tests.generated.outcome import Choice, of_seed
    from tests.generated.reference import GeneratorDefect

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    features = [*draw(seed).features, *Choice.draw(seed).features]
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{seed}-") as folder:
        try:
            found = of_seed(seed, Path(folder))
        except GeneratorDefect as error:
            return Row(seed, "defect", str(error), features)
    return Row(seed, found.kind, found.line, features, found.near_ties)


def run(seeds: Sequence[int], workers: int) -> Iterator[Row]:
    """Rows as they come. A process that dies is a crash of the seeds it was given."""
    if workers == 1:
        yield from map(one, seeds)
        return
    left = list(reversed(seeds))
    while left:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from _pooled(pool, left, workers)


def _pooled(pool: ProcessPoolExecutor, left: list[int], workers: int) -> Iterator[Row]:
    """Take seeds off `left` until it is empty or the pool is broken."""
    flying: dict[Future[Row], int] = {}
    try:
        while left or flying:
            while left and len(flying) < 2 * workers:
                seed = left.pop()
                flying[pool.submit(one, seed)] = seed
            for ready in wait(flying, return_when=FIRST_COMPLETED).done:
                row = ready.result()
                del flying[ready]
                yield row
    except BrokenProcessPool:
        # which of the seeds it was is seen when each is alone
        for seed in flying.values():
            yield _alone(seed)
    except (KeyboardInterrupt, GeneratorExit):
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _alone(seed: int) -> Row:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(one, seed).result()
        except BrokenProcessPool:
            return Row(seed, "crash", "the process died", [])


def table(rows: Sequence[Row]) -> str:
    """Outcomes by feature, the features with faults first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for feature in row.features:
            name, _, value = feature.partition("=")
            short = feature if len(value) < 28 else f"{name}=..."
            counts[short][row.kind] += 1
    order = sorted(counts, key=lambda f: (-sum(counts[f][k] for k in FAULTS), f))
    head = f"{'feature':36}" + "".join(f"{k:>9}" for k in KINDS)
    lines = [f"{f:36}" + "".join(f"{counts[f][k] or '':>9}" for k in KINDS) for f in order]
    return "\n".join([head, *lines])


def report(rows: Sequence[Row], wanted: int) -> str:
    """The table, the reasons of refusals, near ties, and the seeds that failed."""
    total = Counter(row.kind for row in rows)
    reasons = Counter(_reason(row.line) for row in rows if row.kind == "refused")
    ties = [f"{gap:.1e}" for row in rows for gap in row.near_ties]
    parts = [
        table(rows), "",
        *(f"{count:5} refused: {reason}" for reason, count in reasons.most_common()), "",
        *(f"{r.kind} at seed {r.seed}: {r.line}\n    make fuzz SEED={r.seed} N=1\n"
          f"    {' '.join(r.features)}" for r in rows if r.kind in FAULTS), "",
        f"{len(ties)} near ties, gaps {', '.join(ties[:8])}" if ties else "no near ties",
        f"{len(rows)} of {wanted} seeds: " + ", ".join(f"{total[k]} {k}" for k in KINDS)
        + (f", {total['defect']} defects of the generator" if total["defect"] else ""),
    ]  # fmt: skip
    return "\n".join(parts)


def choose(rows: Sequence[Row], count: int) -> list[int]:
    """Seeds without faults that together have as many features as they can, half of them equal.

    Each in turn is the one that adds most features that no chosen seed has; of two, the smaller.
    """
    left = sorted((r for r in rows if r.kind not in FAULTS), key=lambda r: r.seed)
    chosen, covered = list[Row](), set[str]()
    while left and len(chosen) < count:
        due = count - len(chosen) <= count // 2 - sum(r.kind == "equal" for r in chosen)
        offered = [r for r in left if r.kind == "equal"] if due else left
        best = max(offered or left, key=lambda r: len(set(r.features) - covered))
        left.remove(best)
        chosen.append(best)
        covered.update(best.features)
    return sorted(row.seed for row in chosen)


def _reason(line: str) -> str:
    """A refusal without the names and numbers of its host."""
    return line.partition(" (looked at")[0][:110]


def main() -> int:
    """Run the command line's seeds and print the report."""
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    read.add_argument("--count", type=int, default=100)
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--workers", type=int, default=2)
    read.add_argument("--keep", type=Path, help="append every row to this file, as JSON lines")
    read.add_argument("--choose", type=int, default=0, help="so many seeds that have all features")
    given = read.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seeds, rows = range(given.seed, given.seed + given.count), list[Row]()
    interrupted = False
    try:
        for row in run(seeds, given.workers):
            rows.append(row)
            if given.keep:
                with given.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            count = Counter(r.kind for r in rows)
            told = ", ".join(f"{count[k]} {k}" for k in (*KINDS, "defect") if count[k])
            print(f"\r{len(rows)} of {len(seeds)}: {told}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        interrupted = True
    print(file=sys.stderr)
    print(report(rows, len(seeds)))
    if given.choose:
        print(f"seeds for the tests: {choose(rows, given.choose)}")
    if interrupted:
        print(f"interrupted after {len(rows)} of {len(seeds)} seeds", file=sys.stderr)
        return INTERRUPTED
    return int(any(row.kind in FAULTS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
