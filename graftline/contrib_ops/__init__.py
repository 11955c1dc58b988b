"""The meaning, in numpy, of the ONNX Runtime contrib ops a lowered graph may hold.

Source: onnxruntime/docs/ContribOperators.md and the schemas of onnxruntime 1.31; every op is
compared with ONNX Runtime's CPU kernels in tests/core/test_contrib_ops.py. Arithmetic is float32
(float64 stays float64), and results return in the input's type. An attribute or input that is not
listed here is an error, never ignored.
"""

from __future__ import annotations

from onnx.reference.op_run import OpRun

from graftline.contrib_ops.activations import FastGelu, QuickGelu
from graftline.contrib_ops.attention import GroupQueryAttention
from graftline.contrib_ops.norms import (
    SimplifiedLayerNormalization,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
)
from graftline.contrib_ops.quantized import GatherBlockQuantized, MatMulNBits
from graftline.contrib_ops.rotary import RotaryEmbedding
from graftline.contrib_ops.tensors import FusedMatMul, GatherElements

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
