"""Attention over a cache, with grouped KV heads."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

from graftline.contrib_ops.operands import MICROSOFT, Array, heads, wide
from graftline.contrib_ops.rotary import rotate


def _unpacked(
    query: Array, key: Array | None, value: Array | None, query_heads: int, kv_heads: int
) -> tuple[Array, Array, Array]:
    """Query, key and value [B, N, heads * D], where one input may hold all three side by side."""
    if key is not None and value is not None:
        return query, key, value
    if key is not None or value is not None:
        raise ValueError("GroupQueryAttention takes key and value together, or packed qkv")
    size = query.shape[2] // (query_heads + 2 * kv_heads)
    ends = [query_heads * size, (query_heads + kv_heads) * size]
    query, key, value = np.split(query, ends, axis=2)
    return query, key, value


def _bias(bias: Array | None, total: int) -> Array | float:
    """What is added to the scores [B, heads, N, total]."""
    if bias is None:
        return 0.0
    if bias.shape[-1] != total:
        raise ValueError(
            f"GroupQueryAttention: attention_bias covers {bias.shape[-1]} positions, not "
            f"total_sequence_length = {total}"
        )
    return wide(bias)


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


def _past(seqlens_k: Array, rows: int, total: int) -> Array:
    """[B]: committed positions before the `rows` new ones of each sequence, 0 in a first prompt.

    Raises ValueError for lengths that do not fit.
    """
    lengths = seqlens_k.reshape(-1).astype(np.int64) + 1
    past = np.zeros_like(lengths) if rows == total else lengths - rows
    if np.any(past < 0) or np.any(lengths > total):
        raise ValueError(
            f"GroupQueryAttention: seqlens_k + 1 = {lengths.tolist()} does not fit {rows} new "
            f"positions of {total} in total"
        )
    return past


def _positions(position_ids: Array | None, past: Array, rows: int, total: int) -> Array:
    """[B, N]: where each new row is rotated to."""
    at = past[:, None] + np.arange(rows)
    if position_ids is not None:
        at = position_ids if rows != total else position_ids.flat[0] + np.arange(rows)
    return np.broadcast_to(at, (len(past), rows))


def _seen(past: Array, rows: int, total: int, window: int) -> npt.NDArray[np.bool_]:
    """[B, N, total]: which slots each new row sees; a negative `window` is none."""
    slot = np.arange(total)
    own = (past[:, None] + np.arange(rows))[:, :, None]
    seen = np.asarray(slot <= own, np.bool_)
    return np.logical_and(seen, own - slot < window) if window >= 0 else seen


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
        query, key, value = _unpacked(query, key, value, num_heads, kv_num_heads)
        dtype = query.dtype
        q = heads(wide(query), num_heads)
        k, v = (heads(wide(x), kv_num_heads) for x in (key, value))
        batch, _, rows, size = q.shape
        total = int(np.asarray(total_sequence_length).reshape(-1)[0])
        past = _past(seqlens_k, rows, total)
        if do_rotary:
            if cos_cache is None or sin_cache is None:
                raise ValueError("GroupQueryAttention: do_rotary needs cos_cache and sin_cache")
            at = _positions(position_ids, past, rows, total)
            cos, sin = (wide(table)[at][:, None] for table in (cos_cache, sin_cache))
            q, k = (rotate(x, cos, sin, bool(rotary_interleaved)) for x in (q, k))

        present_key = _write(past_key, k.astype(dtype), past, total)
        present_value = _write(past_value, v.astype(dtype), past, total)
        keys, values = (
            np.repeat(wide(x[:, :, :total]), num_heads // kv_num_heads, axis=1)
            for x in (present_key, present_value)
        )
        scores = (q @ keys.swapaxes(2, 3)) * (scale or 1 / math.sqrt(size))
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + _bias(attention_bias, total)
        seen = _seen(past, rows, total, local_window_size)
        scores = np.where(seen[:, None], scores, -np.inf)
        sink = None if head_sink is None else wide(head_sink)
        if sink is None and smooth_softmax == 1:
            sink = np.zeros(num_heads, dtype=scores.dtype)
        weights = _sinked_softmax(scores, sink)
        used = np.asarray(seen.any(axis=1))[:, None, :, None]
        out = weights @ np.where(used, values, 0)
        flat = out.transpose(0, 2, 1, 3).reshape(batch, rows, num_heads * size)
        return flat.astype(dtype), present_key, present_value
