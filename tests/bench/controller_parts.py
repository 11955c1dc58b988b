"""What each part of the controller buys, in simulation: speed without it over speed with it.

    PYTHONPATH=. python tests/bench/controller_parts.py [--batches 1,4,8] [--parts NAME,NAME]

Store drafts: prompt-lookup on texts that copy, deceive, change or are new, on tables of int4
and fp32. Drafts that cost time: an early exit that is right in 0.8, 0.5, 0.3 or 0.05 of its tokens,
undisturbed, with drafted steps of which the first two take eight times as long, or with drafted
steps that really take twice as long. Nothing is timed: the same numbers everywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import exp, log
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))

import test_goodput as stores
from simulated_exit import SimulatedExit
from toy_session import INT4

from graftline.runtimes.chances import evidence
from graftline.runtimes.control import choose, pace, paid, speculation
from graftline.runtimes.control.costs import Costs, interpolated
from graftline.runtimes.control.pace import Pace
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafters.early_exit import EarlyExit

ACCEPTED = (0.8, 0.5, 0.3, 0.05)
TEXTS = ("copying", "changing", "deceiving", "novel")


def slow_at_first() -> Callable[[str], float]:
    """The first two drafted steps take eight times as long."""
    left = [2]

    def factor(kind: str) -> float:
        left[0] -= kind == "drafted"
        return 8.0 if kind == "drafted" and left[0] >= 0 else 1.0

    return factor


DISTURBED: dict[str, Callable[[], Callable[[str], float]]] = {
    "undisturbed": lambda: lambda kind: 1.0,
    "two hitches": slow_at_first,
    "slow drafts": lambda: lambda kind: 2.0 if kind == "drafted" else 1.0,
}


def true(costs: Costs, times: float = 1.0) -> stores.Truth:
    """What a table says of all rows together, drafted steps so many times as much; not by the
    model that is believed, of which parts are switched off."""

    def taken(rows: Sequence[int], branching: bool) -> float:
        table = {**costs.tree, 1: costs.chain[1]} if branching else costs.chain
        return interpolated(table, sum(rows)) * (times if sum(rows) > len(rows) else 1.0)

    return taken


def stored(batch: int) -> dict[str, float]:
    """Speed over plain of store drafts, by case."""
    found: dict[str, float] = {}
    for name in TEXTS:
        text = getattr(stores, name)
        for precision, costs in (("int4", INT4), ("fp32", stores.FP32)):
            found[f"{name} {precision}"] = stores.speed(
                text, "prompt-lookup", costs, true(costs), batch
            )
    found["copying int4 thrice"] = stores.speed(
        stores.copying, "prompt-lookup", INT4, true(INT4, 3.0), batch
    )
    return found


def paid_for(batch: int) -> dict[str, float]:
    """The same of drafts that cost time."""
    found: dict[str, float] = {}
    for accepted in ACCEPTED:
        for name, disturbed in DISTURBED.items():
            text = SimulatedExit(accepted, disturbed=disturbed())
            for _ in range(3):
                text.run(256, batch)
            found[f"exit {accepted} {name}"] = text.speed
    return found


Patch = tuple[Any, str, Any]
STORE: dict[str, Patch] = {
    "charges of slow drafts": (Pace, "slower", lambda *_: 1.0),
    "least gain": (choose, "MARGIN", 0.0),
    "few sizes of batched steps": (choose, "SIZES", frozenset(range(257))),
    "small tries": (speculation, "TRIED", 1 << 30),
    "forgetting": (evidence, "HORIZON", 1e9),
    "batch in the costs": (Costs, "of", lambda costs, rows, branching=False, past=256, batch=1,
                           _of=Costs.of: _of(costs, rows / batch, branching, past, 1)),
}  # fmt: skip
PAID: dict[str, Patch] = {
    "charges of slow drafts": (Pace, "slower", lambda *_: 1.0),
    "tries that begin soon": (pace, "HASTE", pace.PATIENCE),
    "forgetting": (paid, "HORIZON", 1e9),
    "exploring": (paid, "EXPLORE", 0.0),
    "what a resumed step saves": (paid.Paid, "_saved", lambda *_: 0.0),
    "judging declined drafts": (DraftModel, "_decline", lambda *_: None),
    "sharing of calls": (EarlyExit, "share", lambda *_: 1.0),
    "batch in the costs": STORE["batch in the costs"],
}


@contextmanager
def without(patch: Patch) -> Iterator[None]:
    """With a part of the controller switched off."""
    owner, name, value = patch
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--parts", default="", help="some of them; all where none is named")
    given = parser.parse_args()
    batches = [int(size) for size in given.batches.split(",")]
    for title, cases, every in (("Paid", paid_for, PAID), ("Store", stored, STORE)):
        named = given.parts.split(",") if given.parts else every
        parts = {part: every[part] for part in named if part in every}
        whole = {batch: cases(batch) for batch in batches}
        print(f"\n{title} drafts, speed over plain:\n")
        print(
            "| case | " + " | ".join(map(str, batches)) + " |\n" + "|---" * (len(batches) + 1) + "|"
        )
        for case in whole[batches[0]]:
            print(f"| {case} | " + " | ".join(f"{whole[b][case]:.2f}" for b in batches) + " |")
        print("\n| without | " + " | ".join(f"{b}: mean, least, most" for b in batches) + " |")
        print("|---" * (len(batches) + 1) + "|", flush=True)
        for part, patch in parts.items():
            cells: list[str] = []
            for batch in batches:
                with without(patch):
                    now = cases(batch)
                over = {case: now[case] / whole[batch][case] for case in now}
                mean = exp(sum(map(log, over.values())) / len(over))
                least, most = (pick(over, key=lambda case: over[case]) for pick in (min, max))
                cells.append(f"{mean:.3f}, {over[least]:.2f} ({least}), {over[most]:.2f} ({most})")
            print(f"| {part} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
