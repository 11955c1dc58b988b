"""What a step costs: milliseconds of one call by its rows, its sequences and their positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graftline.errors import BundleError
from graftline.runtimes.control.pace import Pace

NEAR = 256
"""Committed positions of each sequence at which every size is measured."""
FAR = 1024
"""Committed positions at which some sizes are measured again, where the capacity allows."""

Table = dict[int, float]
"""Milliseconds by rows."""


@dataclass
class Costs:
    """The cost model: measured tables, and what steps have shown of them since (`pace`).

    `chain`: one sequence with the causal mask, `tree`: with a tree mask, both with NEAR committed
    positions; `far_chain` and `far_tree` the same with FAR of them; `batch`: for some numbers of
    sequences that share a call, each with NEAR positions, by the rows of each. `store` keeps a
    table in place of the one that was read.
    """

    chain: Table
    tree: Table
    far_chain: Table = field(default_factory=dict[int, float])
    far_tree: Table = field(default_factory=dict[int, float])
    batch: dict[int, Table] = field(default_factory=dict[int, Table])
    store: Callable[[dict[str, Any]], object] | None = field(
        default=None, compare=False, repr=False
    )
    pace: Pace = field(default_factory=Pace, init=False, compare=False, repr=False)
    _lines: dict[tuple[int, bool, int], tuple[float, float]] = field(
        default_factory=dict[tuple[int, bool, int], tuple[float, float]],
        init=False, compare=False, repr=False,
    )  # fmt: skip
    """By rows, shape and sequences, the cost at NEAR and its growth by position."""

    def __post_init__(self) -> None:
        tables = (self.chain, self.tree, self.far_chain, self.far_tree, *self.batch.values())
        positive = all(cost > 0 for table in tables for cost in table.values())
        if 1 not in self.chain or not positive or (self.far_chain and 1 not in self.far_chain):
            raise BundleError("step costs need a chain of 1 row and positive times; measure again")
        if any(sequences < 2 or not table for sequences, table in self.batch.items()):
            raise BundleError("step costs of a batch are of 2 sequences or more; measure again")

    def of(self, rows: int, branching: bool = False, past: float = NEAR, batch: int = 1) -> float:
        """The cost of a step of `rows` rows in all, of `batch` sequences behind `past` positions
        each: linear between what was measured and past the last, and linear in the positions. A
        batch costs what one sequence with all its rows does, and what was seen besides.

        Without measured trees a tree costs what a chain does. One row is never a tree.
        """
        line = self._lines.get((rows, branching, batch)) or self._line(rows, branching, batch)
        return max(line[0] + line[1] * (past - NEAR), line[0] / 2)

    def _line(self, rows: int, branching: bool, batch: int) -> tuple[float, float]:
        near, growth, each = self._near(rows, branching, batch), 0.0, rows / batch
        if self.far_chain:
            short = self._at(self.chain, self.tree if branching else {}, each)
            far = self._at(self.far_chain, self.far_tree if branching else {}, each)
            growth = max(far - short, 0.0) / (FAR - NEAR)
        if batch > 1 and not self.batch:  # the call of one sequence reads the positions of one
            near += growth * NEAR * (batch - 1)
        self._lines[rows, branching, batch] = near, growth * batch
        return near, growth * batch

    def _near(self, rows: int, branching: bool, batch: int) -> float:
        """What one sequence with so many rows costs, and what a batch was seen to cost besides."""
        near = self._at(self.chain, self.tree if branching else {}, rows)
        if batch == 1 or not self.batch:
            return near
        sizes = sorted(self.batch)
        high = next((size for size in sizes if size >= batch), sizes[-1])
        low = max((size for size in sizes if size < high), default=1)
        first, last = (self._besides(size, rows / batch) for size in (low, high))
        return max(near + first + (last - first) * (batch - low) / (high - low), self.chain[1])

    def _besides(self, size: int, each: float) -> float:
        """Milliseconds of `size` sequences of `each` rows over those of one with as many rows."""
        if size == 1:
            return 0.0
        table = self.batch[size]
        each = min(max(each, min(table)), max(table))
        return self._at(table, {}, each) - self._at(self.chain, {}, size * each)

    @staticmethod
    def _at(chain: Table, tree: Table, rows: float) -> float:
        known = {**tree, 1: chain[1]} if tree else chain
        if rows in known:
            return known[int(rows)]
        sizes = sorted(known)
        if len(sizes) == 1:
            return known[sizes[0]] * rows / sizes[0]
        above = next((i for i, size in enumerate(sizes) if size > rows), len(sizes) - 1) or 1
        low, high = sizes[above - 1], sizes[above]
        slope = (known[high] - known[low]) / (high - low)
        return max(known[low] + slope * (rows - low), known[sizes[0]])

    def settle(self) -> None:
        """Between requests: where steps disagreed with the table for long, put it right and store
        it. Here a single row keeps its cost, which the costs of draft models are shares of; what is
        stored is what steps take now."""
        found = self.pace.disagreement()
        if found is None:
            return
        plain = found["plain"]
        chain, tree, batch = (found[kind] / plain for kind in ("chain", "tree", "batch"))
        self.chain, self.far_chain = _scaled(self.chain, chain), _scaled(self.far_chain, chain)
        self.tree, self.far_tree = _scaled(self.tree, tree), _scaled(self.far_tree, tree)
        self.batch = {n: _scaled(table, batch, 0) for n, table in self.batch.items()}
        self._lines.clear()
        if self.store is not None:
            self.store(self.to_json(plain))

    def to_json(self, scale: float = 1.0) -> dict[str, Any]:
        """With string keys, as JSON has them; all times `scale` times as long."""
        def strings(table: Table) -> dict[str, float]:
            return {str(rows): ms * scale for rows, ms in table.items()}

        batch = {str(size): strings(table) for size, table in self.batch.items()}
        return {**{name: strings(getattr(self, name)) for name in _TABLES}, "batch": batch}

    @classmethod
    def from_json(
        cls, table: Mapping[str, Any], store: Callable[[dict[str, Any]], object] | None = None
    ) -> Costs:
        """Inverse of `to_json`. Raises BundleError when the table is of another form."""
        try:
            chain, tree, far, far_tree = (_numbers(table[name]) for name in _TABLES)
            batch = {int(size): _numbers(part) for size, part in table["batch"].items()}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"step costs cannot be read ({error}); measure again") from error
        return cls(chain, tree, far, far_tree, batch, store)


_TABLES = ("chain", "tree", "far_chain", "far_tree")


def _numbers(table: Mapping[str, float]) -> Table:
    return {int(rows): float(ms) for rows, ms in table.items()}


def _scaled(table: Table, factor: float, kept: int = 1) -> Table:
    """Sizes of more than `kept` rows times the factor."""
    return {rows: ms * (factor if rows > kept else 1.0) for rows, ms in table.items()}
