"""What pays for trying again that which does not pay now."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass
class Purse:
    """Milliseconds saved up for tries. Filled with a share of the time that is spent anyway, it
    makes exploring cost that share, whatever one try costs."""

    held: float = 0.0

    def save(self, income: float, most: float = inf) -> None:
        """Put some more in, up to `most` in all."""
        self.held = min(self.held + income, most)

    def pays(self, price: float) -> bool:
        """Take `price` out, if there is as much."""
        if self.held < price:
            return False
        self.held -= price
        return True
