"""LANTERN's relaxed acceptance: a token also has the probability of its nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.kindred import kindred_rule
from graftline.runtimes.lenient import Place
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.stochastic import residual
from graftline.runtimes.token_space import TokenSpace, token_space
from graftline.runtimes.verdict import Rule


@dataclass(frozen=True)
class Neighbours:
    """LANTERN (arXiv 2410.03355): tokens near each other in latent space are interchangeable.

    Of the k nearest neighbours of a drafted token x, the nearest ones whose probabilities sum to
    at most `bound` give theirs to x: p becomes p', at a total-variation distance of at most
    `bound`. x stands with probability min(1, p'(x) / q(x)), else the residual of p' and q is
    drawn from; for greedy requests x stands when it is the best token of p' at temperature 1.
    Strict: k = 0 or bound = 0 (exact). Loose: k = V, bound = 1 (everything).
    """

    lossless: ClassVar[bool] = False
    k: int = 16
    """Neighbours looked at."""
    bound: float = 0.2
    """Most total variation per drafted token, 0 to 1."""
    metric: str = "cosine"

    def __post_init__(self) -> None:
        if self.k < 0 or not 0 <= self.bound <= 1:
            raise GraftlineError(
                f"neighbours: k={self.k}, bound={self.bound} do not fit; "
                "use k >= 0 and 0 <= bound <= 1"
            )

    def of(self, sampling: Sampling, generator: np.random.Generator, resources: Resources) -> Rule:
        """The rule for these settings. Raises GraftlineError without the target's embedding."""
        space = token_space("neighbours", resources, self.metric)
        kinship = Pooled(self.k, self.bound, space)
        return kindred_rule(sampling, generator, kinship, kinship.stands)


@dataclass(frozen=True)
class Pooled:
    """Neighbours' probabilities pooled on one token."""

    k: int
    bound: float
    space: TokenSpace

    def trial(self, p: Doubles, q: Doubles, token: int) -> tuple[float, Doubles]:
        pooled = self.pooled(p, token)
        return float(pooled[token] / q[token]), residual(pooled, q)

    def stands(self, place: Place, child: int, token: int) -> bool:
        return int(np.argmax(self.pooled(place.probs, token))) == token

    def pooled(self, p: Doubles, token: int) -> Doubles:
        """p' [V]: what as many nearest neighbours as the bound allows have, moved to `token`."""
        near = self.space.nearest(token, self.k)
        moved = np.cumsum(p[near])
        count = len(near)
        if self.bound < 1:  # a sum of probabilities may round to more than 1
            count = int(np.searchsorted(moved, self.bound, side="right"))
        changed = p.copy()
        if count:
            changed[near[:count]] = 0.0
            changed[token] += moved[count - 1]
        return changed
