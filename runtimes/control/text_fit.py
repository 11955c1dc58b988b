"""How well proposals do in the text at hand, beside what was believed of them."""

from __future__ import annotations

TRUST = 10.0
"""Tokens that must have been promised in a text before its record counts as much as the belief."""
KEEP = 0.97
"""What every further proposal leaves of the record of those before it."""
MOST = 1.5
"""Most by which a text is believed to be better than others: what looks best of many is less good
than it looks."""

TOLD = 2.0
"""The same where nothing is chosen, so that nothing looks better than it is."""


class TextFit:
    """The tokens that came of proposals over those they were believed to bring.

    A belief about a class of proposals is a mean over texts: in one that copies, all classes come
    true more often, in one that does not, less. One factor tells them apart after a few proposals,
    long before the belief about any class has moved.
    """

    def __init__(self, trust: float = TRUST, most: float = MOST) -> None:
        self._trust, self._most = trust, most
        self._came, self._hoped = 0.0, 0.0

    def record(self, came: int, hoped: float) -> None:
        """A proposal, scored or not, of which `hoped` tokens were expected would have brought
        `came`."""
        self._came = self._came * KEEP + came
        self._hoped = self._hoped * KEEP + hoped

    @property
    def factor(self) -> float:
        """What expected tokens are to be multiplied by."""
        return min(self._ratio, self._most)

    @property
    def told(self) -> float:
        """The same for who decides nothing, and only says what is to be expected."""
        return min(self._ratio, TOLD)

    @property
    def _ratio(self) -> float:
        return (self._trust + self._came) / (self._trust + self._hoped)
