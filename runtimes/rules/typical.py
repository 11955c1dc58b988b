"""Typical acceptance: a token stands when it is likely enough for how unsure the target is."""

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
class Typical:
    """Medusa's typical acceptance (arXiv 2401.10774): x stands when p(x) > min(eps, delta e^-H(p)).

    H is the entropy of the target's distribution p, in nats: where many continuations are
    plausible, less probability is asked for. Medusa keeps the longest candidate that stands; here
    the target's own choice goes before the others at each node, which keeps closer to the target.
    Strict: epsilon = 1, delta = inf (the target's choices only). Loose: epsilon = 0 (everything).
    """

    lossless: ClassVar[bool] = False
    epsilon: float = 0.09
    """The most probability that is asked for."""
    delta: float = 0.3
    """The share of e^-H that is asked for."""

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1 or not self.delta >= 0:
            raise GraftlineError(
                f"typical: epsilon={self.epsilon}, delta={self.delta} are not valid; "
                "use 0 <= epsilon <= 1 and delta >= 0"
            )

    def of(
        self, sampling: Sampling, generator: np.random.Generator, resources: Resources
    ) -> Lenient:
        """The rule for these settings. At temperature > 0, p is what is sampled from."""
        return Lenient(sampling, generator, self.stands)

    def stands(self, place: Place, child: int, token: int) -> bool:
        chance = place.odds.chance(token)
        return chance > self.epsilon or chance > self.delta * math.exp(-place.odds.entropy)
