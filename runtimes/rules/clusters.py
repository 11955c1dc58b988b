"""GSD's grouped acceptance: the cluster around a drafted token is tested instead of the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.kindred import kindred_rule
from graftline.runtimes.acceptance.lenient import Place
from graftline.runtimes.acceptance.stochastic import residual
from graftline.runtimes.acceptance.token_space import TokenSpace, token_space
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.session import Ints
from graftline.runtimes.verdict import Rule


@dataclass(frozen=True)
class Clusters:
    """Grouped speculative decoding, GSD (arXiv 2508.07747).

    The cluster C of a drafted token x is made anew for each distribution: the tokens within `size`
    ranks of x under the target's p whose probability differs by less than `gap` and whose
    embedding is nearer than `distance`; x itself always. x stands with probability
    min(1, p(C) / q(C)), else the residual of p and q is drawn from; for greedy requests x stands
    when its cluster, at temperature 1, holds the target's choice.
    Strict: size = 0 (exact). Loose: size = V, gap > 1, distance = inf (everything).
    """

    lossless: ClassVar[bool] = False
    size: int = 7
    """Ranks above and below the drafted token that may belong to its cluster."""
    gap: float = 0.15
    """Difference of probability within a cluster, not reached."""
    distance: float = 0.5
    """Distance of embeddings within a cluster, not reached."""
    metric: str = "cosine"

    def __post_init__(self) -> None:
        if self.size < 0 or not self.gap >= 0 or not self.distance >= 0:
            raise GraftlineError(
                f"clusters: size={self.size}, gap={self.gap}, distance={self.distance} are not "
                "valid; use numbers >= 0"
            )

    def of(self, sampling: Sampling, generator: np.random.Generator, resources: Resources) -> Rule:
        """The rule for these settings. Raises GraftlineError without the target's embedding."""
        space = token_space("clusters", resources, self.metric)
        kinship = Grouped(self.size, self.gap, self.distance, space)
        return kindred_rule(sampling, generator, kinship, kinship.stands)


@dataclass(frozen=True)
class Grouped:
    """Tokens tested by the cluster around them."""

    size: int
    gap: float
    distance: float
    space: TokenSpace

    def trial(self, p: Doubles, q: Doubles, token: int) -> tuple[float, Doubles]:
        cluster = self.cluster(p, token)
        return float(p[cluster].sum() / q[cluster].sum()), residual(p, q)

    def stands(self, place: Place, child: int, token: int) -> bool:
        """Whether the cluster of `token` holds the target's choice, which no token is above."""
        weights = place.odds.weights
        ahead = int(np.count_nonzero(weights > weights[token])) or 1  # a tie is a rank, too
        gap = place.odds.chance(place.own) - place.odds.chance(token)
        if ahead > self.size or not gap < self.gap:
            return False
        return float(self.space.distances(token, np.array([place.own]))[0]) < self.distance

    def cluster(self, p: Doubles, token: int) -> Ints:
        """The tokens counted together with `token`, the first of them, under p [V]."""
        here = p[token]
        above = _closest(np.flatnonzero(p > here), p, self.size)
        below = np.flatnonzero(p <= here)
        below = _closest(below[below != token], -p, self.size)
        near = np.concatenate([above, below])
        near = near[np.abs(p[near] - here) < self.gap]
        near = near[self.space.distances(token, near) < self.distance]
        return np.concatenate([[token], near])


def _closest(ids: Ints, key: Doubles, count: int) -> Ints:
    """The `count` ids of the smallest keys."""
    if len(ids) <= count:
        return ids
    return ids[np.argpartition(key[ids], count)[:count]]
