"""Which parts of a model a route skips: the search of those that pay most as a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Skipped = frozenset[int]
"""Places of parts: of block b its attention 2 b, its MLP 2 b + 1."""
HOPELESS = 0.1
"""Agreement below which no further part is added."""
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

    def run(self, current: Skipped, watch: Callable[[str], None]) -> Tried:
        """The best route found, `current` among them.

        1. Each part is tried alone.
        2. Parts are added one after another, those first that save most for what they lose: a
           single part may cost more than it saves where many together pay.
        3. From the best of these routes each part is taken back, if that is better.
        """
        order = self._order(watch)
        best, route = self.tried(current), frozenset[int]()
        for place, part in enumerate(order):
            if self._last_attention(route | {part}):
                continue
            route |= {part}
            found = self.tried(route)
            best = max(best, found, key=lambda one: one.value)
            told = f"agreement {found.agreement:.2f} at {found.cost:.2f} of a step"
            watch(f"routes: {place + 1} of {len(order)} parts skipped together, {told}")
            if found.agreement < HOPELESS:
                break
        for part in sorted(best.skipped) if len(best.skipped) > 1 else ():
            found = self.tried(best.skipped - {part})
            best = max(best, found, key=lambda one: one.value)
        return best

    def _order(self, watch: Callable[[str], None]) -> list[int]:
        """All parts, those first that save most for what they lose."""
        lost: dict[int, float] = {}
        for part, work in enumerate(self.work):
            share = self.agreement(frozenset({part}))
            lost[part] = (1.0 - share) / work
            told = f"{part + 1} of {len(self.work)} parts tried alone"
            watch(f"routes: {told}, agreement {share:.2f}")
        return sorted(lost, key=lost.__getitem__)

    def _last_attention(self, skipped: Skipped) -> bool:
        """Whether no attention would be left."""
        return skipped.issuperset(range(0, len(self.work), 2))
