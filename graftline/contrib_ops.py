"""The meaning, in numpy, of the ONNX Runtime contrib ops a lowered graph may hold.

Source: onnxruntime/docs/ContribOperators.md and the schemas of onnxruntime 1.31; every op is
compared with ONNX Runtime's CPU kernels in tests/core/test_contrib_ops.py. Arithmetic is float32
(float64 stays float64), and results return in the input's type. An attribute or input that is not
listed here is an error, never ignored.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"


def _wide(x: Array) -> Array:
    """`x` in the type that arithmetic is done in."""
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def _heads(x: Array, heads: int) -> Array:
    """[B, N, heads*D] -> [B, heads, N, D]."""
    batch, rows, width = x.shape
    return x.reshape(batch, rows, heads, width // heads).transpose(0, 2, 1, 3)


def _rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Rotate the leading 2*R features of x [B, heads, N, D] by cos, sin [B, 1, N, R]."""
    width = 2 * cos.shape[-1]
    if interleaved:
        first, second = x[..., 0:width:2], x[..., 1:width:2]
    else:
        first, second = x[..., : width // 2], x[..., width // 2 : width]
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    turned = x.copy()
    if interleaved:
        turned[..., 0:width:2], turned[..., 1:width:2] = real, imaginary
    else:
        turned[..., : width // 2], turned[..., width // 2 : width] = real, imaginary
    return turned


def _write(past: Array | None, new: Array, starts: Array, total: int) -> Array:
    """The cache after `new` [B, K, N, D] is written at slot starts[b] of each row.

    Its capacity is that of `past`, or `total` where that is more; other slots keep their values.
    """
    batch, heads, rows, size = new.shape
    capacity = max(total, 0 if past is None else past.shape[2])
    present = np.zeros((batch, heads, capacity, size), dtype=new.dtype)
    if past is not None:
        present[:, :, : past.shape[2]] = past
    for row, start in enumerate(starts):
        present[row, :, start : start + rows] = new[row][:, : capacity - start]
    return present


def _sinked_softmax(scores: Array, sink: Array | None) -> Array:
    """Softmax over the last axis, with exp(sink[head]) added to the denominator.

    A row of -inf alone gives zeros.
    """
    top = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink.reshape(1, -1, 1, 1))
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink.reshape(1, -1, 1, 1) - top)
    return weights / np.where(total == 0, 1, total)


class GroupQueryAttention(OpRun):
    """Causal attention over a cache, with grouped KV heads, rotary positions and an additive bias.

    Row b has total seqlens_k[b] + 1 positions, of which the last N are new: they are rotated,
    written to slots past .. past + N - 1 of the present buffers (capacity S = that of the past
    buffers), and query i sees slots k <= past + i (and k > past + i - local_window_size).
    Where N equals total_sequence_length this is the first prompt: past is 0 for every row, rows
    may be padded on the right, and of `position_ids` only the first element counts (the following
    positions are consecutive), as ONNX Runtime documents.
    """

    op_domain = MICROSOFT

    def _run(
        self,
        query: Array,
        key: Array | None,
        value: Array | None,
        past_key: Array | None,
        past_value: Array | None,
        seqlens_k: Array,
        total_sequence_length: Array,
        cos_cache: Array | None = None,
        sin_cache: Array | None = None,
        position_ids: Array | None = None,
        attention_bias: Array | None = None,
        head_sink: Array | None = None,
        *,
        num_heads: int,
        kv_num_heads: int,
        scale: float = 0.0,
        softcap: float = 0.0,
        local_window_size: int = -1,
        do_rotary: int = 0,
        rotary_interleaved: int = 0,
        smooth_softmax: int = -1,
    ) -> tuple[Array, ...]:
        if (key is None) != (value is None):
            raise ValueError("GroupQueryAttention takes key and value together, or packed qkv")
        if key is None or value is None:
            size = query.shape[2] // (num_heads + 2 * kv_num_heads)
            ends = [num_heads * size, (num_heads + kv_num_heads) * size]
            query, key, value = np.split(query, ends, axis=2)
        dtype = query.dtype
        q = _heads(_wide(query), num_heads)
        k, v = (_heads(_wide(x), kv_num_heads) for x in (key, value))
        batch, _, rows, size = q.shape
        total = int(np.asarray(total_sequence_length).reshape(-1)[0])
        first_prompt = rows == total
        lengths = seqlens_k.reshape(-1).astype(np.int64) + 1
        past = np.zeros_like(lengths) if first_prompt else lengths - rows
        if np.any(past < 0) or np.any(lengths > total):
            raise ValueError(
                f"GroupQueryAttention: seqlens_k + 1 = {lengths.tolist()} does not fit {rows} new "
                f"positions of {total} in total"
            )
        if do_rotary:
            if cos_cache is None or sin_cache is None:
                raise ValueError("GroupQueryAttention: do_rotary needs cos_cache and sin_cache")
            at = past[:, None] + np.arange(rows)
            if position_ids is not None:
                at = position_ids if not first_prompt else position_ids.flat[0] + np.arange(rows)
            at = np.broadcast_to(at, (batch, rows))
            cos, sin = (_wide(table)[at][:, None] for table in (cos_cache, sin_cache))
            q, k = (_rotate(x, cos, sin, bool(rotary_interleaved)) for x in (q, k))

        present_key = _write(past_key, k.astype(dtype), past, total)
        present_value = _write(past_value, v.astype(dtype), past, total)
        keys, values = (
            np.repeat(_wide(x[:, :, :total]), num_heads // kv_num_heads, axis=1)
            for x in (present_key, present_value)
        )
        scores = (q @ keys.swapaxes(2, 3)) * (scale or 1 / math.sqrt(size))
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        if attention_bias is not None:
            if attention_bias.shape[-1] != total:
                raise ValueError(
                    f"GroupQueryAttention: attention_bias covers {attention_bias.shape[-1]} "
                    f"positions, not total_sequence_length = {total}"
                )
            scores = scores + _wide(attention_bias)
        slot = np.arange(total)
        own = (past[:, None] + np.arange(rows))[:, :, None]
        seen = slot <= own
        if local_window_size >= 0:
            seen &= own - slot < local_window_size
        scores = np.where(seen[:, None], scores, -np.inf)
        sink = head_sink
        if sink is None and smooth_softmax == 1:
            sink = np.zeros(num_heads, dtype=scores.dtype)
        weights = _sinked_softmax(scores, None if sink is None else _wide(sink))
        used = seen.any(axis=1)[:, None, :, None]
        out = weights @ np.where(used, values, 0)
        flat = out.transpose(0, 2, 1, 3).reshape(batch, rows, num_heads * size)
        return flat.astype(dtype), present_key, present_value


def _rms(x: Array, gamma: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    """x over its root mean square along `axes`, times gamma; and the inverse root."""
    inverse = 1 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + epsilon)
    return x * inverse * gamma, inverse


class SimplifiedLayerNormalization(OpRun):
    """RMS normalization from `axis` on. ONNX Runtime keeps this op in the standard domain."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        gamma: Array,
        *,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int = 1,
    ) -> tuple[Array, ...]:
        if stash_type != 1:
            raise ValueError(f"SimplifiedLayerNormalization: stash_type {stash_type} is not float")
        axes = tuple(range(axis % x.ndim, x.ndim))
        out, inverse = _rms(_wide(x), _wide(gamma), axes, epsilon)
        return out.astype(gamma.dtype), inverse


class SkipSimplifiedLayerNormalization(OpRun):
    """s = input + skip + bias; the RMS normalization of s, its mean slot, 1/rms, and s itself.

    ONNX Runtime declares the second output and never fills it; it is zeros here.
    """

    op_domain = MICROSOFT

    def _run(
        self,
        x: Array,
        skip: Array,
        gamma: Array,
        bias: Array | None = None,
        *,
        epsilon: float = 1e-12,
    ) -> tuple[Array, ...]:
        total = _wide(x) + _wide(skip) + (0 if bias is None else _wide(bias))
        out, inverse = _rms(total, _wide(gamma), (-1,), epsilon)
        return out.astype(x.dtype), np.zeros_like(inverse), inverse, total.astype(x.dtype)


class SkipLayerNormalization(OpRun):
    """s = input + skip + bias; LayerNormalization of s, its mean, 1/deviation, and s itself."""

    op_domain = MICROSOFT

    def _run(
        self,
        x: Array,
        skip: Array,
        gamma: Array,
        beta: Array | None = None,
        bias: Array | None = None,
        *,
        epsilon: float = 1e-12,
    ) -> tuple[Array, ...]:
        total = _wide(x) + _wide(skip) + (0 if bias is None else _wide(bias))
        mean = total.mean(axis=-1, keepdims=True)
        out, inverse = _rms(total - mean, _wide(gamma), (-1,), epsilon)
        out = out + (0 if beta is None else _wide(beta))
        return out.astype(x.dtype), mean, inverse, total.astype(x.dtype)


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
        zero = _wide(zero_points).reshape(rows, blocks)
    weight = (q - zero[..., None]) * _wide(scales).reshape(rows, blocks, 1)
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
        out = _wide(a) @ weight.T + (0 if bias is None else _wide(bias))
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


class FastGelu(OpRun):
    """The tanh approximation of GELU, of x + bias."""

    op_domain = MICROSOFT

    def _run(self, x: Array, bias: Array | None = None) -> tuple[Array, ...]:
        y = _wide(x) + (0 if bias is None else _wide(bias))
        out = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return (out.astype(x.dtype),)


class QuickGelu(OpRun):
    """x * sigmoid(alpha * x); alpha 1 is SiLU."""

    op_domain = MICROSOFT

    def _run(self, x: Array, *, alpha: float = 1.702) -> tuple[Array, ...]:
        y = _wide(x)
        return ((y / (1 + np.exp(-np.clip(alpha * y, -80, 80)))).astype(x.dtype),)


class FusedMatMul(OpRun):
    """alpha * A @ B, either of them transposed in its last two axes first."""

    op_domain = MICROSOFT

    def _run(
        self, a: Array, b: Array, *, alpha: float = 1.0, transA: int = 0, transB: int = 0
    ) -> tuple[Array, ...]:
        left = np.swapaxes(a, -1, -2) if transA else a
        right = np.swapaxes(b, -1, -2) if transB else b
        return ((np.matmul(left, right) * alpha).astype(a.dtype),)


class RotaryEmbedding(OpRun):
    """Heads [B, heads, N, D] or [B, N, heads * D], rotated by rows of cos and sin [P, R/2].

    `position_ids` are [B, N], or [1]: the first position. Without rotary_embedding_dim a flat input
    has heads of twice the width of the tables.
    """

    op_domain = MICROSOFT

    def _run(
        self,
        x: Array,
        position_ids: Array,
        cos_cache: Array,
        sin_cache: Array,
        *,
        interleaved: int = 0,
        num_heads: int = 0,
        rotary_embedding_dim: int = 0,
        scale: float = 1.0,
        is_packed_batching: int = 0,
    ) -> tuple[Array, ...]:
        if scale != 1.0 or is_packed_batching:
            raise ValueError("RotaryEmbedding with a scale or packed batches is not known")
        size = 2 * cos_cache.shape[-1]
        width = x.shape[-1] // num_heads if rotary_embedding_dim and num_heads else size
        heads = x if x.ndim == 4 else _heads(x, x.shape[-1] // width)
        at = position_ids
        if at.size == 1 and heads.shape[2] > 1:
            at = at.reshape(1, 1) + np.arange(heads.shape[2])
        at = np.broadcast_to(at.reshape(-1, heads.shape[2]), (len(x), heads.shape[2]))
        turned = _rotate(heads, cos_cache[at][:, None], sin_cache[at][:, None], bool(interleaved))
        return (turned if x.ndim == 4 else turned.transpose(0, 2, 1, 3).reshape(x.shape),)


class GatherElements(OpRun):
    """The standard operator: onnx.reference's own is wrong above 32 entries (onnx 1.23)."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, *, axis: int = 0) -> tuple[Array, ...]:
        at = np.where(indices < 0, indices + data.shape[axis], indices)
        index: list[Array] = list(np.indices(at.shape, sparse=True))
        index[axis] = at
        return (data[tuple(index)],)


CONTRIB_OPS: tuple[type[OpRun], ...] = (
    GatherElements,
    RotaryEmbedding,
    FusedMatMul,
    GroupQueryAttention,
    SimplifiedLayerNormalization,
    SkipSimplifiedLayerNormalization,
    SkipLayerNormalization,
    MatMulNBits,
    GatherBlockQuantized,
    FastGelu,
    QuickGelu,
)
"""What graftline.evaluate adds to onnx.reference."""
