"""What pays for trying again that which does not pay now."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass
class Budget:
    """Milliseconds saved up for tries. Filled with a share of the time that is spent anyway, it
    makes exploring cost that share, whatever one try costs."""

    left: float = 0.0

    def save(self, income: float, most: float = inf) -> None:
        """Put some more in, up to `most` in all."""
        self.left = min(self.left + income, most)

    def pays(self, price: float) -> bool:
        """Take `price` out, if there is as much."""
        if self.left < price:
            return False
        self.left -= price
        return True
