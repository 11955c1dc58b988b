"""Weights as small integers in blocks along K: w is close to (code - zero) * scale.

Zero points are uint8 on purpose: ONNX Runtime's CPU kernel for float zero points is 30 times
slower. The scale is always the least-squares one for the codes chosen. ONNX Runtime's k-quant and
HQQ fit a real-valued offset and round it afterwards; on blocks whose values share a sign that loses
most of the weight, so per block the closer of their codes and round-to-nearest's is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.optional import require

Floats = npt.NDArray[Any]
Codes = tuple[Floats, Floats]
"""Codes [n, block] and zero points [n, 1] of n blocks, whole numbers kept as floats."""
Fit = tuple[Floats, Floats, Floats]
"""Codes, scales [n, 1] and zero points."""
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Ranges that are tried for a block, relative to that of its values."""
CHUNK = 4096
"""Blocks worked on at once: they stay in the cache."""


@dataclass(frozen=True)
class Packed:
    """Inputs of MatMulNBits: data [N, blocks, block*bits/8], scales [N, blocks], packed zeros."""

    data: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8]


def quantize_rows(rows: Floats, bits: int, block: int, algorithm: str) -> Packed:
    """Quantize a weight given as [N, K], K a multiple of `block`.

    Raises BackendError when hqq is asked for and torch is missing.
    """
    count, depth = rows.shape
    blocks = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, block)
    codes = np.empty(blocks.shape, np.uint8)
    scales, zeros = np.empty((2, len(blocks), 1), np.float32)
    propose = ALGORITHMS[algorithm]

    def work(start: int) -> None:
        part = slice(start, start + CHUNK)
        x = blocks[part]
        codes[part], scales[part], zeros[part] = _closest(x, propose(x, bits))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(work, range(0, len(blocks), CHUNK)))
    shape = (count, depth // block)
    parts = codes.reshape(*shape, block), scales.reshape(shape), zeros.reshape(shape)
    return packed(*parts, bits)


def packed(codes: Floats, scales: Floats, zeros: Floats, bits: int) -> Packed:
    """From codes [N, blocks, block] and scales and zero points [N, blocks], all whole numbers but
    the scales."""
    return Packed(_pack(codes, bits), scales, _pack(zeros.astype(np.uint8), bits))


def _closest(x: Floats, proposals: Iterable[Codes]) -> Fit:
    """Per block the codes, scale and zero point of least squared error."""
    kept: Fit | None = None
    least = np.full((len(x), 1), np.inf, np.float32)
    for codes, zero in proposals:
        level = codes - zero
        power = np.square(level).sum(axis=1, keepdims=True)
        scale = (x * level).sum(axis=1, keepdims=True) / np.where(power == 0, 1, power)
        error = np.square(x - level * scale).sum(axis=1, keepdims=True)
        if kept is None:
            kept, least = (codes, scale, zero), error
            continue
        won = error < least
        fresh = (codes, scale, zero)
        kept = _where(won, fresh, kept)
        least = np.where(won, error, least)
    assert kept is not None
    return kept


def _where(won: Floats, new: Fit, old: Fit) -> Fit:
    return (
        np.where(won, new[0], old[0]),
        np.where(won, new[1], old[1]),
        np.where(won, new[2], old[2]),
    )


def _rtn(x: Floats, bits: int) -> Iterator[Codes]:
    """Round to the nearest of 2^bits levels over the range of a block, zero included."""
    yield _levels(x, bits, 1.0)


def _levels(x: Floats, bits: int, shrink: float) -> Codes:
    """The nearest of 2^bits levels over `shrink` times the range of a block, zero included."""
    top = (1 << bits) - 1
    low = np.minimum(x.min(axis=1, keepdims=True), 0) * np.float32(shrink)
    span = np.maximum(x.max(axis=1, keepdims=True), 0) * np.float32(shrink) - low
    inverse = top / np.where(span == 0, 1, span)
    zero = np.clip(np.round(-low * inverse), 0, top)
    return np.clip(np.round(x * inverse) + zero, 0, top), zero


def _range(x: Floats, bits: int) -> Iterator[Codes]:
    """The same over smaller ranges too, which are finer and cut the largest values off."""
    for shrink in SHRINKS:
        yield _levels(x, bits, shrink)


def _k_quant(x: Floats, bits: int) -> Iterator[Codes]:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    with np.errstate(divide="ignore", invalid="ignore"):
        codes, _, zero = quant_tensor_k_quant_cpu(x, bits, x.shape[1])
    yield from _rtn(x, bits)
    yield codes.astype(np.float32), zero.astype(np.float32)


def _hqq(x: Floats, bits: int) -> Iterator[Codes]:
    torch = require("torch")
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        HQQWeightOnlyQuantConfig,
        HQQWeightOnlyQuantizer,
    )

    solver = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=x.shape[1], bits=bits))
    _, scale, zero = solver.quantize_internal(torch.from_numpy(x), bits=bits, group_size=x.shape[1])
    top = (1 << bits) - 1
    whole = np.clip(np.round(zero.numpy()), 0, top)
    yield from _rtn(x, bits)
    yield np.clip(np.round(x / scale.numpy()) + whole, 0, top), whole


ALGORITHMS: dict[str, Callable[[Floats, int], Iterator[Codes]]] = {
    "rtn": _rtn,
    "range": _range,
    "hqq": _hqq,
    "k-quant": _k_quant,
}


def _pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Bytes along the last axis, the first code in the low bits; an odd end is padded with 0."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return np.bitwise_or(codes[..., 0::2], np.left_shift(codes[..., 1::2], np.uint8(4)))
