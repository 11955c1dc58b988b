"""What a step costs: milliseconds by number of rows, shape and committed positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graftline.errors import BundleError

NEAR = 256
"""Committed positions at which every size is measured."""
FAR = 1024
"""Committed positions at which some sizes are measured again, where the capacity allows."""
_KINDS = ("chain", "tree")


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one step of q rows: `chain` with the causal mask, `tree` with a tree mask,
    both with NEAR committed positions; `far_chain` and `far_tree` the same with FAR of them.

    Attention grows with what is committed, and faster for several rows than for one, so that a
    draft that pays after a short prompt may lose after a long one.
    """

    chain: dict[int, float]
    tree: dict[int, float]
    far_chain: dict[int, float] = field(default_factory=dict[int, float])
    far_tree: dict[int, float] = field(default_factory=dict[int, float])
    _lines: dict[tuple[int, bool], tuple[float, float]] = field(
        default_factory=dict[tuple[int, bool], tuple[float, float]],
        init=False, repr=False, compare=False,
    )  # fmt: skip
    """By rows and shape, the cost at NEAR and its growth by position: asked for many times a step.
    """

    def __post_init__(self) -> None:
        tables = (self.chain, self.tree, self.far_chain, self.far_tree)
        positive = all(cost > 0 for table in tables for cost in table.values())
        if 1 not in self.chain or not positive or (self.far_chain and 1 not in self.far_chain):
            raise BundleError("step costs need a chain of 1 row and positive times; measure again")

    def of(self, rows: int, branching: bool = False, past: int = NEAR) -> float:
        """The cost of `rows` rows after `past` positions: linear between measured sizes and past
        the last, and linear in the positions.

        Without measured trees a tree costs what a chain does. One row is never a tree.
        """
        near, slope = self._lines.get((rows, branching)) or self._line(rows, branching)
        return max(near + slope * (past - NEAR), near / 2)

    def _line(self, rows: int, branching: bool) -> tuple[float, float]:
        near, slope = _at(self.chain, self.tree if branching else {}, rows), 0.0
        if self.far_chain:
            far = _at(self.far_chain, self.far_tree if branching else {}, rows)
            slope = max(far - near, 0.0) / (FAR - NEAR)
        self._lines[rows, branching] = near, slope
        return near, slope

    def to_json(self) -> dict[str, dict[str, float]]:
        """With string keys, as JSON has them."""
        tables = {
            "chain": self.chain, "tree": self.tree,
            "far_chain": self.far_chain, "far_tree": self.far_tree,
        }  # fmt: skip
        return {
            name: {str(rows): ms for rows, ms in table.items()} for name, table in tables.items()
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Mapping[str, float]]) -> Costs:
        """Inverse of `to_json`. Raises BundleError when the table is of another form."""
        try:
            chain, tree = (_numbers(table[kind]) for kind in _KINDS)
            far_chain, far_tree = (_numbers(table.get(f"far_{kind}", {})) for kind in _KINDS)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"step costs cannot be read ({error}); measure again") from error
        return cls(chain, tree, far_chain, far_tree)


def _numbers(table: Mapping[str, float]) -> dict[int, float]:
    return {int(rows): float(ms) for rows, ms in table.items()}


def _at(chain: Mapping[int, float], tree: Mapping[int, float], rows: int) -> float:
    known = {**tree, 1: chain[1]} if tree else chain
    if rows in known:
        return known[rows]
    sizes = sorted(known)
    if len(sizes) == 1:
        return known[1] * rows
    above = next((i for i, size in enumerate(sizes) if size > rows), len(sizes) - 1)
    low, high = sizes[above - 1], sizes[above]
    slope = (known[high] - known[low]) / (high - low)
    return max(known[low] + slope * (rows - low), known[1])
