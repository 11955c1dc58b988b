"""What steps take beside what their costs say."""

from __future__ import annotations

from collections import deque
from statistics import median_low

LATELY, SLIGHT = 9, 0.05
"""Steps whose median counts, as one may be a hitch; and by how much drafted steps may be slower
without being charged, as decisions would hang on the clock."""
OTHERWISE = 4.0
"""Plain steps so much faster or slower show that the costs are those of another machine, which say
nothing of how kinds of steps compare on this one."""
COMPARED, PATIENCE, WINDOW = 3, 256, 64
"""Plain steps after which drafted ones can be compared with them; plain steps in which a charge
falls by 1, so that a try costs 1 / PATIENCE of the time, however slow it is; steps over which
`drift` forgets."""


class Pace:
    """Ratios of measured to believed milliseconds. A machine that is slow as a whole slows all
    kinds of steps alike, and changes what is expected (`value`) but no choice; drafted steps that
    are slower than plain ones are charged for it, whatever makes them so: a slow rule, a drafter, a
    wrong table. While a recipe does not draft its charges fall, so that it is tried again."""

    def __init__(self) -> None:
        self.value, self.drift = 1.0, {False: 1.0}
        """How much longer steps take now than their costs say; and for long, drafted or not."""
        self._seen: dict[tuple[str, str, int], deque[float]] = {}
        self._charges: dict[tuple[str, str, int], float] = {}
        """By recipe, kind and sequences, in powers of two; plain steps of any number together."""

    def step(self, kind: str, ratio: float) -> None:
        """A step of any recipes took `ratio` times as long as its costs say."""
        self.value += (min(ratio, 2.0 * self.value) - self.value) / LATELY
        if kind != "paid":  # the tables have no part of what a draft model takes
            known = self.drift.get(kind != "plain", self.drift[False])
            self.drift[kind != "plain"] = known + (min(ratio, 2.0 * known) - known) / WINDOW

    def record(self, recipe: str, kind: str, batch: int, ratio: float) -> None:
        """The same of a step of one recipe."""
        bucket = (recipe, kind, batch.bit_length() if kind != "plain" else 0)
        seen = self._seen.setdefault(bucket, deque(maxlen=LATELY))
        seen.append(ratio)
        if kind == "plain":
            for other in self._charges:
                self._charges[other] -= (other[0] == recipe) / PATIENCE
        elif self.settled(recipe) and len(seen) > 1:
            usual = median_low(self._seen[recipe, "plain", 0])
            comparable = 1 / OTHERWISE < usual < OTHERWISE
            self._charges[bucket] = median_low(seen) / usual if comparable else 1.0

    def slower(self, recipe: str, kind: str, batch: int) -> float:
        """What the cost of a drafted step is to be multiplied by."""
        charge = self._charges.get((recipe, kind, batch.bit_length()), 1.0)
        return charge if charge > 1.0 + SLIGHT else 1.0

    def settled(self, recipe: str) -> bool:
        """Whether the recipe's drafted steps have plain ones to be compared with."""
        return len(self._seen.get((recipe, "plain", 0), ())) >= COMPARED
