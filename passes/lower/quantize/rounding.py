"""Rounding a matrix so that its product with typical inputs stays: error compensation (GPTQ).

Columns are rounded one after another, and what one loses is made good by those that are left, as
far as the second moments of the inputs allow (Frantar et al. 2022, after Hassibi's optimal brain
surgeon). ONNX Runtime's own GPTQ rounds its result to the nearest a second time, with other scales,
and keeps neither codes nor scales; so this one gives what MatMulNBits reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.passes.lower.quantize.block_codes import SHRINKS, Packed, packed

Floats = npt.NDArray[Any]
APART = 0.5
"""How far the second moments of different inputs are drawn to zero: a sample of a thousand tokens
shows far more agreement of a thousand inputs than there is. SmolLM2's products with other texts are
off by less with 0.5 than with 0.2 or 0.8; with 0 (and a damping of 1 %) they are off by more than
those of plain rounding."""
DAMPING = 1e-3
"""Added to the second moments, relative to their mean: inputs that are always zero."""
ROWS = 1024
"""Rows of a matrix that are worked on at once: they stay in the cache."""


class Moments:
    """Second moments E[x x^T] of a matrix's inputs [.., K], as the compensation needs them.

    `order` [K] is that in which columns are rounded: the blocks with the most power in their inputs
    first, and in a block the columns with the most, so that what they lose is made good by all
    others. `factor` is, of the inputs in that order, the upper triangular U with
    U^T U = (E + damping)^-1.
    """

    def __init__(self, inputs: Floats, block: int) -> None:
        """Inputs that are zero throughout leave the matrix to its rounding."""
        x = inputs.reshape(-1, inputs.shape[-1]).astype(np.float32, copy=False)
        mean = (x.T @ x) / max(len(x), 1)
        power, size = np.diag(mean), float(np.diag(mean).mean())
        self.order = _by_power(power, block)
        drawn = mean[np.ix_(self.order, self.order)] * np.float32(1 - APART)
        np.fill_diagonal(drawn, power[self.order] + np.float32(DAMPING * size if size else 1.0))
        lower = np.linalg.cholesky(drawn[::-1, ::-1])
        self.factor: Floats = np.triu(np.linalg.inv(lower)[::-1, ::-1])


def _by_power(power: Floats, block: int) -> npt.NDArray[np.int64]:
    """The columns [K], block by block, with the most power first."""
    blocks = power.reshape(-1, block)
    inside = np.argsort(-blocks, axis=1, kind="stable")
    first = np.argsort(-blocks.sum(axis=1), kind="stable")
    return (inside + block * np.arange(len(blocks))[:, None])[first].reshape(-1)


def compensated(rows: Floats, moments: Moments, bits: int, block: int) -> Packed:
    """Quantize a weight given as [N, K], K a multiple of `block`, for inputs of these moments of
    the same block."""
    count, depth = rows.shape
    order = moments.order
    codes = np.empty((count, depth), np.uint8)
    scales, zeros = np.empty((2, count, depth // block), np.float32)

    def work(start: int) -> None:
        part = slice(start, start + ROWS)
        columns = np.array(rows[part, order].T, np.float32, order="C")  # its own: it is used up
        for at, (code, scale, zero) in _rounded(columns, moments.factor, bits, block):
            places = order[at : at + block]
            codes[part, places] = code.T
            scales[part, places[0] // block], zeros[part, places[0] // block] = scale, zero

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(work, range(0, count, ROWS)))
    return packed(codes.reshape(count, -1, block), scales, zeros, bits)


def _rounded(
    columns: Floats, factor: Floats, bits: int, block: int
) -> Iterator[tuple[int, tuple[Floats, Floats, Floats]]]:
    """Place, codes [block, N], scales [N] and zero points [N] of each block of `columns` [K, N],
    which is used up."""
    top, spread = (1 << bits) - 1, np.square(np.diag(factor))
    for at in range(0, len(columns), block):
        own = slice(at, at + block)
        part, upper = columns[own], factor[own, own]
        scale, zero = _grid(part, 1 / spread[own, None], bits)
        codes, lost = np.empty(part.shape, np.uint8), np.empty_like(part)
        for i in range(block):
            level = np.clip(np.round(part[i] / scale) + zero, 0, top)
            codes[i] = level
            lost[i] = (part[i] - (level - zero) * scale) / upper[i, i]
            part[i + 1 :] -= np.multiply.outer(upper[i, i + 1 :], lost[i])
        columns[at + block :] -= factor[own, at + block :].T @ lost
        yield at, (codes, scale, zero)


def _grid(part: Floats, weight: Floats, bits: int) -> tuple[Floats, Floats]:
    """Scale and zero point of each block [b, N], of the range that loses least, when an error in a
    column counts as `weight` [b, 1]."""
    top = (1 << bits) - 1
    low, high = np.minimum(part.min(axis=0), 0), np.maximum(part.max(axis=0), 0)
    least = np.full(part.shape[1], np.inf, np.float32)
    scales, zeros = np.ones_like(least), np.zeros_like(least)
    for shrink in SHRINKS:
        span = (high - low) * np.float32(shrink)
        scale = np.where(span == 0, 1, span / top).astype(np.float32)
        zero = np.clip(np.round(-low * np.float32(shrink) / scale), 0, top)
        level = np.clip(np.round(part / scale) + zero, 0, top) - zero
        power, along = (weight * level * level).sum(axis=0), (weight * level * part).sum(axis=0)
        fitted = np.where(along > 0, along / np.where(power == 0, 1, power), scale)
        level = np.clip(np.round(part / fitted) + zero, 0, top) - zero
        error = (weight * np.square(part - level * fitted)).sum(axis=0)
        won = error < least
        least = np.where(won, error, least)
        scales, zeros = np.where(won, fitted, scales), np.where(won, zero, zeros)
    return scales, zeros
