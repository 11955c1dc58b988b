"""Which parts of a model a route skips: the search of those that pay most as a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Skipped = frozenset[int]
"""Places of parts: of block b its attention 2 b, its MLP 2 b + 1."""
DEEPEST = 8
"""Most tokens of a draft that a route is judged by."""


@dataclass(frozen=True)
class Tried:
    """A route, the share of tokens on which it agrees with the target, its cost in steps of the
    target, and the most tokens that drafting with it brings for the time of a step."""

    skipped: Skipped
    agreement: float
    cost: float
    value: float


@dataclass(frozen=True)
class Search:
    """Looks for the route with the most tokens per cost. `work` are the numbers that each part
    reads, `whole` those of a step; `rows_cost` says what a step of so many rows costs, in steps of
    one; `agreement` measures a route."""

    work: Sequence[int]
    whole: int
    rows_cost: Callable[[int], float]
    agreement: Callable[[Skipped], float]

    def tried(self, skipped: Skipped) -> Tried:
        """A route, measured."""
        share, cost = self.agreement(skipped), self.cost(skipped)
        return Tried(skipped, share, cost, self.value(share, cost))

    def cost(self, skipped: Skipped) -> float:
        """A call of one row, in steps of the target: by what it reads."""
        return 1.0 - sum(self.work[part] for part in skipped) / self.whole

    def value(self, agreement: float, cost: float) -> float:
        """Tokens per step's time with the best number of drafted tokens, one at least."""
        rates: list[float] = []
        for drafted in range(1, DEEPEST + 1):
            expected = sum(agreement**n for n in range(drafted + 1))
            rates.append(expected / (cost * drafted + self.rows_cost(drafted + 1)))
        return max(rates)

    def run(self, watch: Callable[[str], None]) -> Tried:
        """The best route found: parts are tried alone first, and then added in the order of what
        they save for what they lose, each if the route is better with it."""
        count = len(self.work)
        alone: dict[int, float] = {}
        for part in range(count):
            alone[part] = self.agreement(frozenset({part}))
            watch(f"routes: {part + 1} of {count} parts tried alone, agreement {alone[part]:.2f}")
        order = sorted(alone, key=lambda p: (1.0 - alone[p]) / self.work[p])
        best = self.tried(frozenset())
        for place, part in enumerate(order):
            if all(p == part or p in best.skipped for p in range(0, count, 2)):
                continue  # the last attention stays
            found = self.tried(best.skipped | {part})
            best = found if found.value > best.value else best
            told = f"{len(best.skipped)} parts skipped, agreement {best.agreement:.2f}"
            watch(f"routes: {place + 1} of {count} parts added or not; {told}")
        return best
