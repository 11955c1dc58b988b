"""Which tokens are alike: distances between the rows of the target's token embedding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Floats, Ints

METRICS = ("cosine", "euclidean")
CELLS = 256
"""Parts that a large vocabulary falls into: each token is with the one of so many leaders it is
nearest to."""
_ROUNDING = 1e-5


class TokenSpace:
    """Distances are computed for the tokens that are asked about, never V x V.

    cosine: 1 - cos, from 0 to 2; euclidean: the length of the difference.
    """

    def __init__(self, embedding: Callable[[], Floats], metric: str) -> None:
        self._embedding, self._metric = embedding, metric
        self._nearest: dict[tuple[int, int], Ints] = {}
        self._within: dict[tuple[int, int], float] = {}

    @cached_property
    def rows(self) -> Floats:
        """[V, H], read when first needed."""
        return self._embedding()

    @cached_property
    def _squares(self) -> Floats:
        return np.einsum("vh,vh->v", self.rows, self.rows)

    @cached_property
    def _lengths(self) -> Floats:
        return np.sqrt(np.maximum(self._squares, 1e-30))

    def distances(self, token: int, others: Ints | None = None) -> Floats:
        """From `token` to the `others` [n], or to all tokens [V]."""
        chosen = slice(None) if others is None else others
        # the matrix library's threads would go on spinning beside the engine's next steps
        products = np.einsum("vh,h->v", self.rows[chosen], self.rows[token])
        if self._metric == "cosine":
            return 1.0 - products / (self._lengths[chosen] * self._lengths[token])
        squares, own = self._squares[chosen], self._squares[token]
        return np.sqrt(np.maximum(squares + own - 2.0 * products, 0.0))

    @cached_property
    def _cells(self) -> tuple[Ints, Ints, Ints]:
        """The cell of every token [V], and the tokens by cell: [V], with the start of each cell."""
        count = len(self.rows)
        leaders = np.random.default_rng(0).choice(count, min(CELLS, 1 + count // 64), replace=False)
        products = self.rows @ self.rows[leaders].T
        if self._metric == "cosine":
            cell = (products / self._lengths[leaders]).argmax(axis=1)
        else:
            cell = (products - self._squares[leaders] / 2.0).argmax(axis=1)
        starts = np.searchsorted(np.sort(cell), np.arange(len(leaders) + 1))
        return cell, np.argsort(cell, kind="stable"), starts

    def divide(self) -> None:
        """Make the cells, which takes a moment, before a request waits for `may_be_near`."""
        _ = self._cells

    def may_be_near(self, token: int, others: Ints, k: int) -> bool:
        """False when none of `others` is among the `k` nearest of `token`, as far as the tokens in
        its cell tell: a look at few embeddings in place of all."""
        known = self._within.get((token, k))
        if known is None:
            cell, tokens, starts = self._cells
            mates = tokens[starts[cell[token]] : starts[cell[token] + 1]]
            distances = self.distances(token, mates[mates != token])
            known = float(np.partition(distances, k - 1)[k - 1]) if len(distances) >= k else np.inf
            self._within[token, k] = known
        return bool((self.distances(token, others[others != token]) <= known + _ROUNDING).any())

    def nearest(self, token: int, k: int) -> Ints:
        """The `k` tokens nearest to `token`, itself not among them, the nearest first."""
        known = self._nearest.get((token, k))
        if known is None:
            distances = self.distances(token)
            distances[token] = np.inf
            k = min(k, len(distances) - 1)
            best = np.argpartition(distances, k)[:k] if k else np.empty(0, np.int64)
            known = best[np.argsort(distances[best], kind="stable")]
            self._nearest[token, k] = known
        return known


def token_space(who: str, resources: Resources, metric: str) -> TokenSpace:
    """The space of a bundle's target, shared by all sequences. Raises GraftlineError when the
    bundle's embedding is not known or the metric is none of METRICS."""
    if metric not in METRICS:
        raise GraftlineError(f"{who}: metric='{metric}' is unknown; use {' or '.join(METRICS)}")
    if resources.embedding is None:
        raise missing(who, "embedding")
    return _space(resources.embedding, metric)


@lru_cache(maxsize=4)
def _space(embedding: Callable[[], Floats], metric: str) -> TokenSpace:
    space = TokenSpace(embedding, metric)
    space.distances(0)  # reads the embedding before a request waits for it
    return space
