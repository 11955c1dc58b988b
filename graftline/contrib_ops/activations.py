"""Activations: the two approximations of GELU."""

from __future__ import annotations

import math

import numpy as np
from onnx.reference.op_run import OpRun

from graftline.contrib_ops.operands import MICROSOFT, Array, wide


class FastGelu(OpRun):
    """The tanh approximation of GELU, of x + bias."""

    op_domain = MICROSOFT

    def _run(self, x: Array, bias: Array | None = None) -> tuple[Array, ...]:
        y = wide(x) + (0 if bias is None else wide(bias))
        out = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return (out.astype(x.dtype),)


class QuickGelu(OpRun):
    """x * sigmoid(alpha * x); alpha 1 is SiLU."""

    op_domain = MICROSOFT

    def _run(self, x: Array, *, alpha: float = 1.702) -> tuple[Array, ...]:
        y = wide(x)
        return ((y / (1 + np.exp(-np.clip(alpha * y, -80, 80)))).astype(x.dtype),)
