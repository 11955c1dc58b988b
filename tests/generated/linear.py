"""Projections and feed-forward parts of a generated decoder."""

from __future__ import annotations

import math

import numpy as np

from tests.generated.builder import Builder
from tests.generated.settings import Settings


def linear(
    b: Builder, s: Settings, x: str, rows: int, columns: int, bias: bool = False,
    sharp: bool = False,
) -> str:  # fmt: skip
    """x [B, N, rows] @ W [rows, columns] + bias, as the settings spell it; `sharp` weights are
    larger, so that attention looks at few keys."""
    if s.linear == "dynamic":
        return _dynamic(b, x, rows, columns)
    scale = (2.0 if sharp else 1.0) * rows**-0.5
    transposed = s.linear in ("transposed", "gemm_transposed")
    shape = (columns, rows) if transposed else (rows, columns)
    weight = b.weight(*shape, scale=scale)
    offset = b.weight(columns, scale=0.3) if bias else ""
    if s.linear in ("gemm", "gemm_transposed"):
        flat = b.reshape(x, -1, rows)
        given = [flat, weight] + ([offset] if bias else [])
        out = b.op("Gemm", *given, transB=int(transposed))
        shape_of = b.op("Concat", b.size(x, 0), b.size(x, 1), b.ints(columns), axis=0)
        return b.op("Reshape", out, shape_of)
    out = b.op("MatMul", x, b.swap(weight, 1, 0) if transposed else weight)
    return b.op("Add", out, offset) if bias else out


def _dynamic(b: Builder, x: str, rows: int, columns: int) -> str:
    """A product as onnxruntime's quantize_dynamic writes it: 8 bits, the scale of x measured."""
    name = f"weight_quantized.{len(b.weights)}"
    b.weights[name] = b.rng.integers(-120, 120, (rows, columns)).astype(np.int8)
    held, scale, zero = b.many("DynamicQuantizeLinear", [x], 3)
    none = b.constant(np.asarray(0, np.int8))
    whole = b.cast(b.op("MatMulInteger", held, name, zero, none))
    return b.op("Mul", whole, b.op("Mul", scale, b.number(rows**-0.5 / 70)))


def feed_forward(b: Builder, s: Settings, x: str) -> str:
    """A gated or plain MLP over rows [B, N, H]."""
    up = linear(b, s, x, s.hidden, s.inner, s.biases)
    if s.gated:
        gate = _active(b, s, linear(b, s, x, s.hidden, s.inner, s.biases))
        inner = b.op("Mul", gate, up)
    else:
        inner = _active(b, s, up)
    return linear(b, s, inner, s.inner, s.hidden, s.biases)


def _active(b: Builder, s: Settings, x: str) -> str:
    if s.activation == "relu":
        return b.op("Relu", x)
    if s.activation == "silu":
        return b.op("Mul", x, b.op("Sigmoid", x))
    if s.opset >= 20 and s.norm_spelled == "op":
        return b.op("Gelu", x, approximate="tanh" if s.activation == "gelu_tanh" else "none")
    half = b.op("Mul", x, b.number(0.5))
    if s.activation == "gelu":
        inner = b.op("Erf", b.op("Div", x, b.number(math.sqrt(2))))
    else:
        cube = b.op("Mul", b.op("Mul", x, x), x)
        bent = b.op("Add", x, b.op("Mul", cube, b.number(0.044715)))
        inner = b.op("Tanh", b.op("Mul", bent, b.number(np.sqrt(2 / np.pi))))
    return b.op("Mul", half, b.op("Add", inner, b.number(1)))
