"""Root-mean-square and layer normalization, with the residual sum they may take in."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun

from graftline.contrib_ops.operands import MICROSOFT, Array, wide


def _rms(x: Array, gamma: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    """x over its root mean square along `axes`, times gamma; and the inverse root."""
    inverse = 1 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + epsilon)
    return x * inverse * gamma, inverse


def _residual(x: Array, skip: Array, bias: Array | None) -> Array:
    """What is normalized, and added to the stream: x + skip + bias."""
    return wide(x) + wide(skip) + (0 if bias is None else wide(bias))


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
        out, inverse = _rms(wide(x), wide(gamma), axes, epsilon)
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
        total = _residual(x, skip, bias)
        out, inverse = _rms(total, wide(gamma), (-1,), epsilon)
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
        total = _residual(x, skip, bias)
        mean = total.mean(axis=-1, keepdims=True)
        out, inverse = _rms(total - mean, wide(gamma), (-1,), epsilon)
        out = out + (0 if beta is None else wide(beta))
        return out.astype(x.dtype), mean, inverse, total.astype(x.dtype)
