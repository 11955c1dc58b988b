"""What steps take beside what their costs say."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from statistics import median_low

LATELY, SLIGHT, ONCE = 9, 0.05, 3.0
"""Steps whose median counts, as one may be a hitch; by how much drafted steps may be slower without
being charged, as decisions would hang on the clock; and the most that one step is believed."""
OTHERWISE = 4.0
"""Plain steps so much faster or slower show that the costs are those of another machine, which say
nothing of how kinds of steps compare on this one."""
COMPARED, WINDOW = 3, 64
"""Plain steps with which drafted ones can be compared; steps over which `drift` forgets."""
HASTE, PATIENCE = 16, 256
"""Plain steps in which a charge falls by 1: at first, and at most: in the long run a try costs
1 / PATIENCE of the time, however slow it is."""
DRAFTING = "drafting"
"""What drafts alone take, beside what their calls are believed to: a kind of its own."""
LONGER = {"paid": 2, DRAFTING: 2, "chain": 4, "tree": 4}
"""How many times as long every try that fails makes the wait for the next. The first calls of a
model that drafts may be slow several times in a row, as they touch its memory."""


@dataclass
class Bucket:
    """Steps of one recipe, kind and number of sequences: the last ratios of measured to believed
    milliseconds; plain steps since the last of them, and those in which its charge falls by 1."""

    ratios: deque[float] = field(default_factory=lambda: deque[float](maxlen=LATELY))
    waited: int = 0
    patience: int = HASTE

    def over(self, plain: Bucket) -> float:
        """How much slower than plain steps they were; 1 where that is slight or not known."""
        usual = median_low(plain.ratios) if len(plain.ratios) >= COMPARED else 0.0
        if not self.ratios or not 1 / OTHERWISE < usual < OTHERWISE:
            return 1.0
        over = median_low(self.ratios) / usual
        over = min(over, ONCE) if len(self.ratios) == 1 else over
        return over if over > 1.0 + SLIGHT else 1.0

    def drafted(self, ratio: float, plain: Bucket, longer: int) -> None:
        """One more. A try after a charge counts as much as all that was before it; that it was
        needed makes the next one wait longer, until as many drafted steps were not charged."""
        if self.over(plain) == 1.0:
            self.patience = max(self.patience - 1, HASTE)
        elif self.waited:
            self.patience = min(longer * self.patience, PATIENCE)
            self.ratios = deque([median_low(self.ratios)], LATELY)
        self.ratios.append(ratio)
        self.waited = 0


class Pace:
    """Ratios of measured to believed milliseconds. A machine that is slow as a whole slows all
    kinds of steps alike, and changes what is expected (`value`) but no choice; drafted steps that
    are slower than plain ones are charged for it, whatever makes them so: a slow rule, a drafter, a
    wrong table. Both are compared as they were lately. While a recipe does not draft its charges
    fall, so that it is tried again. `drift` is how much longer steps take than their costs for
    long, drafted or not."""

    def __init__(self) -> None:
        self.value, self.drift = 1.0, {False: 1.0}
        self._plain: dict[str, Bucket] = {}
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
        plain = self._plain.setdefault(recipe, Bucket())
        if kind == "plain":
            plain.ratios.append(ratio)
            for (other, *_), bucket in self._drafted.items():
                bucket.waited += other == recipe
        else:
            key = recipe, kind, batch.bit_length()
            self._drafted.setdefault(key, deepcopy(self._known(*key)))
            self._drafted[key].drafted(ratio, plain, LONGER[kind])

    def slower(self, recipe: str, kind: str, batch: int) -> float:
        """What the cost of a drafted step is to be multiplied by."""
        bucket = self._known(recipe, kind, batch.bit_length())
        if not bucket.ratios:
            return 1.0
        charge = bucket.over(self._plain[recipe]) - bucket.waited / bucket.patience
        return charge if charge > 1.0 + SLIGHT else 1.0

    def unsure(self, recipe: str, kind: str, batch: int) -> bool:
        """Whether drafted steps were seen less than twice, or were slow when they last were."""
        bucket = self._known(recipe, kind, batch.bit_length())
        if len(bucket.ratios) < 2:
            return True
        return bucket.waited > 0 and bucket.over(self._plain[recipe]) > 1.0

    def settled(self, recipe: str) -> bool:
        """Whether the recipe's drafted steps have plain ones to be compared with."""
        return recipe in self._plain and len(self._plain[recipe].ratios) >= COMPARED

    def waits(self, recipe: str) -> bool:
        """Whether its drafted steps were seen twice, and plain ones to compare are due."""
        steps = [
            len(one.ratios)
            for (name, kind, _), one in self._drafted.items()
            if name == recipe and kind != DRAFTING
        ]
        return sum(steps) > 1 and not self.settled(recipe)

    def _known(self, recipe: str, kind: str, size: int) -> Bucket:
        """Steps of that many sequences; before there are any, of twice or half as many."""
        near = ((recipe, kind, size + more) for more in (0, 1, -1))
        return next((self._drafted[key] for key in near if key in self._drafted), Bucket())
