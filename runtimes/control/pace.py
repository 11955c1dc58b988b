"""What steps take beside what their costs say."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median_low

LATELY, SLIGHT = 9, 0.05
"""Steps whose median counts, as one may be a hitch; and by how much drafted steps may be slower
without being charged, as decisions would hang on the clock."""
OTHERWISE = 4.0
"""Plain steps so much faster or slower show that the costs are those of another machine, which say
nothing of how kinds of steps compare on this one."""
COMPARED, WINDOW = 3, 64
"""Plain steps after which drafted ones can be compared with them; steps over which `drift` forgets.
"""
HASTE, PATIENCE = 16, 256
"""Plain steps in which a charge falls by 1: at first, as it may be a hitch, and after a try that
failed, so that in the long run a try costs 1 / PATIENCE of the time, however slow it is."""


def _lately() -> deque[float]:
    return deque(maxlen=LATELY)


@dataclass
class Bucket:
    """Drafted steps of one recipe, kind and number of sequences: their ratios of measured to
    believed milliseconds, plain steps since the last of them, and those in which its charge falls
    by 1."""

    ratios: deque[float] = field(default_factory=_lately)
    waited: int = 0
    patience: int = HASTE

    def over(self, usual: float) -> float:
        """How much slower than plain steps they were, of which `usual` is the ratio; 1 where that
        is not known or slight. What happened once says nothing."""
        if len(self.ratios) < 2 or not 1 / OTHERWISE < usual < OTHERWISE:
            return 1.0
        over = median_low(self.ratios) / usual
        return over if over > 1.0 + SLIGHT else 1.0

    def drafted(self, ratio: float, usual: float) -> None:
        """One more. A try after a charge counts as much as all that was before it; that it was
        needed makes the next one wait longer, until as many drafted steps were not charged."""
        if self.over(usual) == 1.0:
            self.patience = max(self.patience - 1, HASTE)
        elif self.waited:
            self.patience = PATIENCE
            self.ratios = deque([median_low(self.ratios)], LATELY)
        self.ratios.append(ratio)
        self.waited = 0


class Pace:
    """Ratios of measured to believed milliseconds. A machine that is slow as a whole slows all
    kinds of steps alike, and changes what is expected (`value`) but no choice; drafted steps that
    are slower than plain ones are charged for it, whatever makes them so: a slow rule, a drafter, a
    wrong table. Both are compared as they were lately: drafts that seem slow because the machine
    has become so are charged until the plain steps that follow show it too. While a recipe does not
    draft its charges fall, so that it is tried again."""

    def __init__(self) -> None:
        self.value, self.drift = 1.0, {False: 1.0}
        """How much longer steps take now than their costs and charges say; and for long than their
        costs, drafted or not."""
        self._plain: dict[str, deque[float]] = {}
        self._drafted: dict[tuple[str, str, int], Bucket] = {}
        """By recipe, kind and sequences, in powers of two; plain steps of any number together."""

    def step(self, kind: str, ratio: float, slower: float = 1.0) -> None:
        """A step of any recipes took `ratio` times as long as its costs say, of which `slower` was
        charged."""
        self.value += (min(ratio / slower, 2.0 * self.value) - self.value) / LATELY
        if kind != "paid":  # the tables have no part of what a draft model takes
            known = self.drift.get(kind != "plain", self.drift[False])
            self.drift[kind != "plain"] = known + (min(ratio, 2.0 * known) - known) / WINDOW

    def record(self, recipe: str, kind: str, batch: int, ratio: float) -> None:
        """The same of a step of one recipe."""
        if kind == "plain":
            self._plain.setdefault(recipe, _lately()).append(ratio)
            for (other, *_), bucket in self._drafted.items():
                bucket.waited += other == recipe
        elif self.settled(recipe):
            bucket = self._drafted.setdefault((recipe, kind, batch.bit_length()), Bucket())
            bucket.drafted(ratio, median_low(self._plain[recipe]))

    def slower(self, recipe: str, kind: str, batch: int) -> float:
        """What the cost of a drafted step is to be multiplied by."""
        bucket = self._drafted.get((recipe, kind, batch.bit_length()))
        if bucket is None:
            return 1.0
        charge = bucket.over(median_low(self._plain[recipe])) - bucket.waited / bucket.patience
        return charge if charge > 1.0 + SLIGHT else 1.0

    def settled(self, recipe: str) -> bool:
        """Whether the recipe's drafted steps have plain ones to be compared with."""
        return len(self._plain.get(recipe, ())) >= COMPARED
