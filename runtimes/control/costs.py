"""What a step costs: milliseconds of one call by its rows, its sequences and their positions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from graftline.errors import BundleError
from graftline.runtimes.control.pace import Pace

NEAR, FAR = 256, 1024
"""Committed positions of each sequence behind which all steps are measured, and some again."""
OFF = 1.25
"""Factor by which steps must differ from the tables, for long, to change what is stored."""

Table = dict[int, float]
"""Milliseconds of a step by the rows of each of its sequences."""


@dataclass
class Costs:
    """The cost model: measured tables, and what steps have shown of them since (`pace`).

    `chain` and `tree`: one sequence with the causal and with a tree mask, behind NEAR positions;
    `far`: a chain behind FAR; `batches`: chains of so many sequences, behind NEAR. `store` keeps
    tables in place of those that were read.
    """

    chain: Table
    tree: Table
    far: Table = field(default_factory=dict[int, float])
    batches: dict[int, Table] = field(default_factory=dict[int, Table])
    store: Callable[[dict[str, Any]], object] | None = field(
        default=None, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        times = [ms for table in self._tables().values() for ms in table.values()]
        if 1 not in self.chain or not all(0 < ms < inf for ms in times):
            raise BundleError("step costs need a chain of 1 row and positive times; measure again")
        self.pace, self._stored = Pace(), (1.0, 1.0)
        self._lines: dict[tuple[int, bool, int], tuple[float, float]] = {}

    def of(self, rows: int, branching: bool = False, past: float = NEAR, batch: int = 1) -> float:
        """The cost of a step of `rows` rows in all, of `batch` sequences behind `past` positions
        each: linear between what was measured and beyond it.

        Without measured trees a tree costs what a chain does. One row is never a tree.
        """
        key = rows, branching, batch
        if key not in self._lines:
            self._lines[key] = self._line(rows, branching, batch)
        near, growth = self._lines[key]
        return max(near + growth * (past - NEAR), near / 2)

    def _line(self, rows: int, branching: bool, batch: int) -> tuple[float, float]:
        """The cost at NEAR and its growth by position: of one sequence with as many rows, and what
        was measured over that of further positions and sequences; where no batch was, each reads
        positions of its own."""
        trees = branching and len(self.tree) > 1
        table = {**self.tree, 1: self.chain[1]} if trees else self.chain
        growth = max(self._over(self.far, rows / batch, 1), 0.0) / (FAR - NEAR)
        more = {size: self._over(one, rows / batch, size) for size, one in self.batches.items()}
        more = {1: 0.0} | (more or {2: growth * NEAR})
        near = max(interpolated(table, rows) + interpolated(more, batch), self.chain[1])
        return near, growth * batch

    def _over(self, table: Table, rows: float, sequences: int) -> float:
        """What a step of a table takes over one sequence with as many rows in all."""
        over = {n: ms - interpolated(self.chain, n * sequences) for n, ms in table.items()}
        return interpolated(over, min(max(rows, min(over)), max(over))) if over else 0.0

    def settle(self) -> None:
        """Between requests: where steps differ from the tables for long, store what they take."""
        plain = self.pace.drift[False]
        now = plain, self.pace.drift.get(True, plain)
        differ = any(not 1 / OFF < a / b < OFF for a, b in zip(now, self._stored, strict=True))
        if self.store is not None and differ:
            self._stored = now
            self.store(self.to_json(*now))

    def to_json(self, plain: float = 1.0, drafted: float = 1.0) -> dict[str, Any]:
        """With string keys, as JSON has them; times of a single row and of more so many times as
        long."""
        return {
            name: {str(rows): ms * (plain if rows == 1 else drafted) for rows, ms in table.items()}
            for name, table in self._tables().items()
        }

    def _tables(self) -> dict[str, Table]:
        """All of them, by their names in JSON."""
        sizes = {str(size): table for size, table in self.batches.items()}
        return {"chain": self.chain, "tree": self.tree, "far": self.far, **sizes}

    @classmethod
    def from_json(
        cls, tables: Mapping[str, Any], store: Callable[[dict[str, Any]], object] | None = None
    ) -> Costs:
        """Inverse of `to_json`. Raises BundleError when the tables are of another form."""
        try:
            read = {name: {int(n): float(ms) for n, ms in t.items()} for name, t in tables.items()}
            chain, tree, far = (read.pop(name) for name in ("chain", "tree", "far"))
            return cls(chain, tree, far, {int(size): t for size, t in read.items()}, store)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"step costs cannot be read ({error}); measure again") from error


def interpolated(table: Table, size: float) -> float:
    """Linear between the sizes of a table and beyond them, never less than its least; of a single
    size in proportion."""
    known = sorted(table)
    if len(known) == 1:
        return table[known[0]] * size / known[0]
    above = min(max(bisect_left(known, size), 1), len(known) - 1)
    low, high = known[above - 1], known[above]
    share = (size - low) / (high - low)
    return max(table[low] + share * (table[high] - table[low]), min(table.values()))
