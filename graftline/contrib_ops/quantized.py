"""Weights stored in few bits, in blocks along the last axis: products with them, and their rows."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun

from graftline.contrib_ops.operands import MICROSOFT, Array, wide


def unpack(packed: Array, bits: int) -> Array:
    """Unsigned integers of `bits` bits along the last axis, the first of a byte in its low bits."""
    if bits not in (2, 4, 8):
        raise ValueError(f"{bits} bits per value cannot be unpacked; 2, 4 or 8 can")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed.view(np.uint8)[..., None] >> shifts) & ((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)


def dequantize(
    packed: Array, scales: Array, zero_points: Array | None, depth: int, block: int, bits: int
) -> Array:
    """The [N, K] weight that MatMulNBits stands for: (q - zero point) * scale, block by block."""
    rows, blocks = packed.shape[0], -(-depth // block)
    q = unpack(packed.reshape(rows, blocks, -1), bits).astype(np.float32)
    if zero_points is None:
        zero: Array = np.full((rows, blocks), 1 << (bits - 1), dtype=np.float32)
    elif zero_points.dtype == np.uint8:
        zero = unpack(zero_points.reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
    else:
        zero = wide(zero_points).reshape(rows, blocks)
    weight = (q - zero[..., None]) * wide(scales).reshape(rows, blocks, 1)
    return weight.reshape(rows, -1)[:, :depth]


class MatMulNBits(OpRun):
    """A @ W^T + bias, W [N, K] packed in blocks along K.

    `accuracy_level` allows a kernel to round A; the meaning is the exact product.
    """

    op_domain = MICROSOFT

    def _run(
        self,
        a: Array,
        packed: Array,
        scales: Array,
        zero_points: Array | None = None,
        g_idx: Array | None = None,
        bias: Array | None = None,
        *,
        K: int,
        N: int,
        block_size: int,
        bits: int = 4,
        accuracy_level: int = 0,
    ) -> tuple[Array, ...]:
        if g_idx is not None:
            raise ValueError("MatMulNBits: g_idx is deprecated and not supported")
        weight = dequantize(packed.reshape(N, -1), scales, zero_points, K, block_size, bits)
        out = wide(a) @ weight.T + (0 if bias is None else wide(bias))
        return (out.astype(a.dtype),)


class GatherBlockQuantized(OpRun):
    """Rows of a quantized table, gathered along axis 0, dequantized in blocks along the last axis.

    Packed uint8 data only (the layout shared with MatMulNBits); an index out of range gives zeros.
    """

    op_domain = MICROSOFT

    def _run(
        self,
        data: Array,
        indices: Array,
        scales: Array,
        zero_points: Array | None = None,
        *,
        bits: int = 4,
        block_size: int = 128,
        gather_axis: int = 0,
        quantize_axis: int = 1,
    ) -> tuple[Array, ...]:
        if data.dtype != np.uint8 or data.ndim != 2 or gather_axis != 0 or quantize_axis % 2 != 1:
            raise ValueError(
                "GatherBlockQuantized: only packed uint8 [rows, bytes] tables are read"
            )
        depth = data.shape[1] * 8 // bits
        count = data.shape[0]
        known = (indices >= -count) & (indices < count)
        at = np.where(known, indices, 0).reshape(-1)
        zeros = None if zero_points is None else zero_points.reshape(count, -1)[at]
        rows = dequantize(data[at], scales[at], zeros, depth, block_size, bits)
        out = np.where(known.reshape(-1, 1), rows, 0).reshape(*indices.shape, depth)
        return (out.astype(scales.dtype),)
