"""Rotary embeddings: heads rotated by rows of cosines and sines."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun

from graftline.contrib_ops.operands import MICROSOFT, Array, heads


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Rotate the leading 2*R features of x [B, heads, N, D] by cos, sin [B, 1, N, R]."""
    width = 2 * cos.shape[-1]
    if interleaved:
        first, second = x[..., 0:width:2], x[..., 1:width:2]
    else:
        first, second = x[..., : width // 2], x[..., width // 2 : width]
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    rotated = x.copy()
    if interleaved:
        rotated[..., 0:width:2], rotated[..., 1:width:2] = real, imaginary
    else:
        rotated[..., : width // 2], rotated[..., width // 2 : width] = real, imaginary
    return rotated


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
        apart = x if x.ndim == 4 else heads(x, x.shape[-1] // width)
        rows, at = apart.shape[2], position_ids
        if at.size == 1 and rows > 1:
            at = at.reshape(1, 1) + np.arange(rows)
        at = np.broadcast_to(at.reshape(-1, rows), (len(x), rows))
        rotated = rotate(apart, cos_cache[at][:, None], sin_cache[at][:, None], bool(interleaved))
        return (rotated if x.ndim == 4 else rotated.transpose(0, 2, 1, 3).reshape(x.shape),)
