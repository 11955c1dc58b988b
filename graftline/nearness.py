"""How near two computations of the same logits are, and how near they must be by the size of the
sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.facts import DecoderFacts

Array = npt.NDArray[Any]
SPACING: Mapping[str, float] = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""Relative distance of two neighbouring numbers of a precision."""
OF_FACTS: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16"}
"""Precision by the dtype of a host's activations, fp32 unless named."""
STAGES = 8
"""Sums and products one behind another in a block; their errors add up like a random walk."""
LEAST = 2e-5
"""The limit of narrow and shallow hosts in fp32, whose walk is too short to be one: of about 900
random decoders of up to 4 blocks and 48 features the most seen is 9e-6."""
MARGIN = 2.0
"""How much more than a random walk is allowed."""
NEARBY: Mapping[str, float] = {"int8": 0.2, "int4": 0.9}
"""Most that the logits of quantized weights may be off on average, as a share of their spread: of
SmolLM2 on random ids 0.07 and 0.60, of tiny random hosts 0.02 and 0.3. An answer that knows nothing
is off by 1, another model's by 1.4."""
AGREE: Mapping[str, float] = {"int8": 1 / 2, "int4": 1 / 16}
"""Least share of rows in which quantized weights choose the same token (SmolLM2: 0.86, 0.21)."""
HIDDEN = -9e3
"""A logit from here down is one that a model hides: it must be hidden in both."""
AT_ONCE = 1 << 20
"""Numbers of either side that are compared at once. A comparison takes ten times their bytes (fp64,
and what lies between), and the logits of a long sequence may be as large as the weights."""


def coarser(*dtypes: str) -> str:
    """The precision that rounds most."""
    return max(dtypes, key=lambda name: SPACING[name])


def limit(dtype: str, facts: DecoderFacts) -> float:
    """Largest difference of a logit that rounding alone explains, relative to its row's largest.

    A sum of H products in fp32 is off by about sqrt(H) spacings; 16-bit kernels add up in fp32 and
    round once. `STAGES` of them per block follow one another.
    """
    width = sqrt(max(facts.hidden, 1)) if dtype == "fp32" else 1.0
    walk = MARGIN * SPACING[dtype] * width * sqrt(STAGES * max(facts.layers, 1))
    return max(walk, LEAST) if dtype == "fp32" else walk


def few_rows(count: int, width: int) -> Iterator[slice]:
    """The rows 0 .. count - 1 of `width` numbers each, as many at a time as are compared at once.
    """
    step = max(1, AT_ONCE // max(width, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def gaps(got: Array, expected: Array) -> Array:
    """[R]: the largest difference in each row of [R, V], relative to the largest expected; infinite
    where a number is not finite, unless both hide that logit."""
    return _row_by_row(_gaps, got, expected)


def spread_gaps(got: Array, expected: Array) -> Array:
    """[R]: root mean square of the difference in each row of [R, V] over that of the expected row,
    both without their means, which a softmax does not see. 1 says as much as no answer at all."""
    return _row_by_row(_spread_gaps, got, expected)


def _row_by_row(measure: Callable[[Array, Array], Array], got: Array, expected: Array) -> Array:
    """What `measure` gives for rows [R, V], a few at a time: no row depends on another."""
    got, expected = np.broadcast_arrays(got, expected)
    found = [measure(got[rows], expected[rows]) for rows in few_rows(*got.shape)]
    return np.concatenate(found) if found else np.zeros(0)


def _gaps(got: Array, expected: Array) -> Array:
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    both = (got < HIDDEN) & (expected < HIDDEN)
    sound = np.isfinite(got) & np.isfinite(expected)
    scale = np.max(np.where(both | ~sound, 0.0, np.abs(expected)), axis=-1)
    with np.errstate(invalid="ignore"):
        off = np.where(both, 0.0, np.where(sound, np.abs(got - expected), np.inf))
    largest = off.max(axis=-1)
    return np.where(largest == 0, 0.0, largest / np.where(scale == 0, 1e-30, scale))


def _spread_gaps(got: Array, expected: Array) -> Array:
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    kept = ~((got < HIDDEN) & (expected < HIDDEN))
    count = np.maximum(kept.sum(axis=-1, keepdims=True), 1)

    def centred(rows: Array) -> Array:
        rows = np.where(kept, rows, 0.0)
        return np.where(kept, rows - rows.sum(axis=-1, keepdims=True) / count, 0.0)

    with np.errstate(invalid="ignore", over="ignore"):
        off = np.sqrt(np.square(centred(got - expected)).sum(axis=-1))
    size = np.sqrt(np.square(centred(expected)).sum(axis=-1))
    off = np.where(np.isfinite(off), off, np.inf)
    return np.where(off == 0, 0.0, off / np.where(size == 0, 1e-30, size))
