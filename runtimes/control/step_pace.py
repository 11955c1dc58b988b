"""Whether drafted steps are as dear, beside plain ones, as was measured before."""

from __future__ import annotations

from graftline.runtimes.control.steady import Steady

FADING = 0.005
"""How much of what drafted steps took longer a plain step forgets; where they took r times as long,
r * r times less: the dearer a mistake, the later it is made again."""
COMPARED = 3
"""Plain steps after which it is known how fast the machine is now."""
SLIGHT = 0.05
"""What drafted steps may take longer than expected without being charged."""
OTHERWISE = 4.0
"""Steps so much faster or slower than measured show that the costs are those of another machine,
which say nothing about this one."""


class StepPace:
    """How much longer steps take than their measured costs say, drafted and plain ones apart.

    A machine that is slow as a whole slows both alike and says nothing. While nothing is drafted
    the difference fades, so that drafts are tried again.
    """

    def __init__(self) -> None:
        self._plain, self._drafted = Steady(), Steady()

    def record(self, drafted: bool, expected: float, taken: float) -> None:
        """A step that should take `expected` milliseconds took `taken`."""
        (self._drafted if drafted else self._plain).add(taken / expected)
        if not drafted and self._drafted.count:
            ratio = max(self._drafted.value / self._plain.value, 1.0)
            self._drafted.value += FADING / ratio**2 * (self._plain.value - self._drafted.value)

    @property
    def settled(self) -> bool:
        """Whether drafted steps have plain ones to be compared with."""
        return self._plain.count >= COMPARED

    @property
    def tried(self) -> bool:
        """Whether any drafted step has been seen."""
        return self._drafted.count > 0

    @property
    def dearer(self) -> float:
        """What the expected cost of a drafted step is to be multiplied by. Little is nothing:
        decisions would hang on the clock."""
        plain, drafted = self._plain, self._drafted
        if not plain.count or not drafted.count or not 1 / OTHERWISE < plain.value < OTHERWISE:
            return 1.0
        ratio = drafted.value / plain.value
        return ratio if ratio > 1.0 + SLIGHT else 1.0
