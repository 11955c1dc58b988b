"""Rollback by distance: a token stands when the target is not too surprised by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.lenient import Lenient, Place
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling


@dataclass(frozen=True)
class Threshold:
    """BiLD's rollback policy (arXiv 2302.07863): x stands when -log p(x) <= threshold.

    The distance is the cross entropy of the target's distribution p against the draft's token.
    Strict: threshold = 0 (the target's choices only). Loose: threshold = inf (everything).
    """

    lossless: ClassVar[bool] = False
    threshold: float = 2.0
    """Most surprise, in nats."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise GraftlineError(
                f"threshold: threshold={self.threshold} is not valid; use a number of nats >= 0"
            )

    def of(
        self, sampling: Sampling, generator: np.random.Generator, resources: Resources
    ) -> Lenient:
        """The rule for these settings. At temperature > 0, p is what is sampled from."""
        return Lenient(sampling, generator, self.stands)

    def stands(self, place: Place, child: int, token: int) -> bool:
        return place.odds.chance(token) >= math.exp(-self.threshold)
