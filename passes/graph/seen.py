"""What softmax makes of a bias: keys far below a row's best are hidden, and what a row has in
common does not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from graftline.evaluate import Array

HIDDEN = -9e3
"""A key so much below the best of its row has no weight; what exporters hide with lies below it."""
_NOTHING = -1e30
_MOST = 1.0
"""Rounding of biases over a million positions; no more is called rounding."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type is a float, bfloat16 included."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def rounding(dtype: np.dtype[Any]) -> float:
    """The step of a float type after 1; 0 of other types."""
    return float(ml_dtypes.finfo(dtype).eps) if is_float(dtype) else 0.0


def largest(dtype: np.dtype[Any]) -> float:
    """The largest number of a float type; infinity for other types."""
    return float(ml_dtypes.finfo(dtype).max) if is_float(dtype) else np.inf


@dataclass(frozen=True)
class Seen:
    """Biases [heads or 1, Q, K] below the largest of their row, not under HIDDEN."""

    bias: Array
    limit: float
    """What rounding explains: four units in the last place of the largest bias that counts."""

    @classmethod
    def of(cls, values: Array) -> Seen:
        """From a mask (true: seen) or an additive bias."""
        if values.dtype == np.bool_:
            return cls(np.where(values, 0.0, HIDDEN), 0.0)
        wide = values.astype(np.float64)
        wide = np.where(wide <= _NOTHING, -np.inf, wide)  # NaN stays, and equals nothing
        top = wide.max(axis=-1, keepdims=True)
        bias = np.maximum(wide - np.where(np.isinf(top), 0.0, top), HIDDEN)
        counted = np.abs(wide[bias > HIDDEN])
        step = 4 * rounding(values.dtype)
        return cls(bias, step * max(1.0, float(counted.max(initial=0.0))))

    @property
    def allowed(self) -> Array:
        """[heads or 1, Q, K] bool: what is seen."""
        return self.bias > HIDDEN

    def gap(self, other: Seen) -> float:
        """The largest difference; what only one of them hides counts in full."""
        return float(np.max(np.abs(self.bias - other.bias), initial=0.0))

    def equals(self, other: Seen) -> bool:
        """Whether both are the same mask but for rounding."""
        return self.gap(other) <= min(max(self.limit, other.limit), _MOST)
