"""What is proposed for a step, and how many of its rows bring most tokens per millisecond."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.runtimes.control.evidence import Evidence, Walk
from graftline.runtimes.control.text_fit import TextFit
from graftline.tree import Tree


class Offer:
    """A sequence's proposal, and what is known of its class and of its text."""

    __slots__ = ("evidence", "fit", "signal", "size", "tree", "walks")

    def __init__(
        self, signal: int, tree: Tree, evidence: Evidence, fit: TextFit, walks: list[Walk]
    ) -> None:
        self.signal, self.tree, self.evidence, self.fit = signal, tree, evidence, fit
        self.walks = walks
        self.size = min(len(tree), len(evidence))
        """Rows that are believed anything of."""

    def hoped(self, rows: int) -> float:
        """Tokens that the first `rows` are believed to bring, in any text."""
        return self.evidence.hoped(min(rows, self.size))


def best_rows(
    offers: Sequence[Offer],
    live: int,
    steps: Sequence[float],
    slopes: Sequence[float],
    gain: float,
    dearer: float = 1.0,
    extra: float = 0.0,
    whole: int = 0,
) -> tuple[int, int]:
    """The rows that bring most tokens per millisecond to `live` sequences, 1 where none of more
    brings `gain` times as many, and how many were looked at.

    `steps` [n] are the milliseconds of 1 to n rows, one that drafts costs `dearer` times as much
    and `extra`, and `slopes` are the `least_slopes` of them. Chances never rise from row to row, so
    the search ends at the first row that could not pay even if all behind it did as well and were
    as cheap as they get. `whole`: only so many rows or none. Plain numbers and lists, because this
    runs between two steps.
    """
    parts = [(one.evidence.at, one.size, one.fit.factor) for one in offers]
    expected = float(live)
    best, rate = 1, expected / steps[0] * gain
    for row in range(1, len(steps)):
        gained = 0.0
        for at, size, factor in parts:
            if row < size:
                gained += factor * at(row)
        expected += gained
        if whole:
            if row + 1 < whole:
                continue
        elif gained <= rate * dearer * slopes[row - 1]:
            return best, row + 1
        worth = expected / (steps[row] * dearer + extra)
        if worth > rate:
            best, rate = row + 1, worth
    return best, whole or len(steps)


def least_slopes(steps: Sequence[float]) -> list[float]:
    """For every row but the last, the least mean difference to any later one: what further rows
    cost each where they are cheapest."""
    slopes, blocks = list[float](), list[tuple[float, int]]()
    for row in range(len(steps) - 2, -1, -1):
        rise, count = steps[row + 1] - steps[row], 1
        while blocks and blocks[-1][0] * count < rise * blocks[-1][1]:
            more, others = blocks.pop()
            rise, count = rise + more, count + others
        blocks.append((rise, count))
        slopes.append(rise / count)
    return slopes[::-1]
