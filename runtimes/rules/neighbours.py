"""LANTERN's relaxed acceptance: a token also has the probability of its nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.kindred import kindred_rule
from graftline.runtimes.acceptance.lenient import Place
from graftline.runtimes.acceptance.odds import Weights
from graftline.runtimes.acceptance.stochastic import residual
from graftline.runtimes.acceptance.token_space import TokenSpace, token_space
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.session import Ints
from graftline.runtimes.verdict import Rule

_ROUNDING = 1e-5
"""More than what is lost of a probability in single precision."""
_FEW = 512
"""Tokens whose distances are less work than those of the whole vocabulary."""


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
                f"neighbours: k={self.k}, bound={self.bound} are not valid; "
                "use k >= 0 and 0 <= bound <= 1"
            )

    def of(self, sampling: Sampling, generator: np.random.Generator, resources: Resources) -> Rule:
        """The rule for these settings. Raises GraftlineError without the target's embedding."""
        space = token_space("neighbours", resources, self.metric)
        space.divide()
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
        best, own = place.odds.chance(place.own), place.odds.chance(token)
        gain = min(self.bound, 1 - best - own)  # what can be moved besides the best
        if best > self.bound + _ROUNDING and own + gain < best - _ROUNDING:
            return False  # without the neighbours, which take a look at every embedding
        weights = place.odds.weights
        if best > own and self.k:  # one neighbour at least must have that share of what is missing
            share = (best - own - _ROUNDING) / self.k * place.odds.total
            likely = np.flatnonzero(weights >= share)
            if len(likely) <= _FEW and not self.space.may_be_near(token, likely, self.k):
                return False
        near, moved = self._near(weights, token, place.odds.total)
        rest = weights.copy()
        rest[near] = rest[token] = 0.0
        rival = int(np.argmax(rest))
        mine, theirs = float(weights[token]) + moved, float(rest[rival])
        return mine > theirs or (mine == theirs and token < rival)

    def pooled(self, p: Doubles, token: int) -> Doubles:
        """p' [V]: what as many nearest neighbours as the bound allows have, moved to `token`."""
        near, moved = self._near(p, token)
        changed = p.copy()
        changed[near] = 0.0
        changed[token] += moved
        return changed

    def _near(self, weights: Weights, token: int, total: float = 1.0) -> tuple[Ints, float]:
        """The neighbours that give what they have to `token`, and the sum of their weights."""
        near = self.space.nearest(token, self.k)
        moved = np.cumsum(weights[near], dtype=np.float64)
        count = len(near)
        if self.bound < 1:  # a sum of probabilities may round to more than 1
            count = int(np.searchsorted(moved, self.bound * total, side="right"))
        return near[:count], float(moved[count - 1]) if count else 0.0
