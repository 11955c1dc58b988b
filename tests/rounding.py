"""How far apart two ways to compute the same may lie in fp32: it follows from the size of the sums.

A BLAS of another CPU adds the terms of a product in another order, and fuses multiply with add or
not. Rounding errors of n additions then make a random walk: with a chance of 0.9993 or more the
error of a sum is below 4 sqrt(n) u times the sum of its terms' magnitudes, where u = 2^-24 is the
unit roundoff (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019,
theorem 2.4, lambda = 4). Two computations differ by at most twice that: 4 sqrt(n) epsilon, for
epsilon = 2 u. Terms of random signs leave far more room, since their sum is sqrt(n) times smaller;
so for these the magnitude of the sum itself is scale enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graftline.models.decoder import TinyDecoder

EPSILON = float(np.finfo(np.float32).eps)
DEVIATIONS = 4
"""Standard deviations of a random walk that are taken for its end: lambda of the theorem."""


def sum_tolerance(terms: float, scale: Any = 1.0) -> Any:
    """The largest difference of two fp32 computations of one value, or of an array of them.

    `terms`: additions on the longest way from the inputs to it. `scale`: its magnitude.
    """
    return DEVIATIONS * EPSILON * np.sqrt(terms) * scale


def assert_same_sums(got: Any, want: Any, terms: float, scale: float | None = None) -> None:
    """Equal but for rounding; NaN equals nothing. `scale`: None is the largest of `want`."""
    limit = sum_tolerance(terms, np.abs(want).max() if scale is None else scale)
    np.testing.assert_allclose(got, want, rtol=0, atol=limit, equal_nan=False)


def decoder_terms(shape: TinyDecoder, seen: int) -> int:
    """Additions on the way through a decoder's matrices, norms and attention over `seen` keys."""
    attention = 2 * shape.hidden + shape.head_size + 2 * seen + shape.heads * shape.head_size
    mlp = 2 * shape.hidden + shape.mlp
    return shape.layers * (attention + mlp) + 2 * shape.hidden
