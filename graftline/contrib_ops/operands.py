"""What the contrib ops do with their operands: the type they compute in, and heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"


def wide(x: Array) -> Array:
    """`x` in the type that arithmetic is done in."""
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def heads(x: Array, heads: int) -> Array:
    """[B, N, heads*D] -> [B, heads, N, D]."""
    batch, rows, width = x.shape
    return x.reshape(batch, rows, heads, width // heads).transpose(0, 2, 1, 3)
