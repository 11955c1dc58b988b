"""Whether drafted steps are as dear, beside plain ones, as was measured before."""

from __future__ import annotations

SETTLING, FADING = 0.1, 0.005
"""How much of a step's surprise is believed to stay, and how much of it a plain step forgets."""
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
        self._plain, self._drafted = _Mean(), _Mean()

    def record(self, drafted: bool, expected: float, taken: float) -> None:
        """A step that should take `expected` milliseconds took `taken`."""
        (self._drafted if drafted else self._plain).add(taken / expected)
        if not drafted and self._drafted.count:
            self._drafted.value += FADING * (self._plain.value - self._drafted.value)

    @property
    def dearer(self) -> float:
        """What the expected cost of a drafted step is to be multiplied by. Little is nothing:
        decisions would hang on the clock."""
        plain, drafted = self._plain, self._drafted
        if not plain.count or not drafted.count or not 1 / OTHERWISE < plain.value < OTHERWISE:
            return 1.0
        ratio = drafted.value / plain.value
        return ratio if ratio > 1.0 + SLIGHT else 1.0


class _Mean:
    """A mean that follows slowly once it has settled; a hitch counts as twice what is usual."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def add(self, ratio: float) -> None:
        self.count += 1
        known = self.value if self.count > 1 else ratio
        self.value = known + max(SETTLING, 1 / self.count) * (min(ratio, 2.0 * known) - known)
