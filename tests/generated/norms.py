"""Norms of a generated decoder, in the spellings that exporters and optimizers write."""

from __future__ import annotations

import numpy as np

from tests.generated.builder import FLOAT, MS, Builder
from tests.generated.settings import Settings


def scale_of(b: Builder, s: Settings, width: int) -> str:
    """The learned scale of a norm; with `plus_one` the file holds it less one."""
    values = 1 + 0.3 * b.rng.standard_normal(width)
    if s.half_norms and not b.half:
        name = f"norm.{len(b.weights)}"
        b.weights[name] = values.astype(np.float16)
        return b.op("Cast", name, to=FLOAT)
    if s.plus_one:
        return b.op("Add", b.given(values - 1), b.number(1.0))
    return b.given(values)


def norm(b: Builder, s: Settings, x: str, width: int) -> str:
    """A norm over the last axis of `x`."""
    scale = scale_of(b, s, width)
    if s.norm == "layer":
        return _layer_norm(b, s, x, scale, width)
    spelled = s.norm_spelled
    if spelled == "op" and s.opset >= 23:
        return b.op("RMSNormalization", x, scale, axis=-1, epsilon=s.epsilon)
    if spelled in ("simplified", "skip", "skip_default"):
        return b.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=s.epsilon)
    return _rms(b, s, x, scale, width)


def add_norm(b: Builder, s: Settings, x: str, delta: str | None, width: int) -> tuple[str, str]:
    """(x + delta, its norm); the norm alone without a delta."""
    if delta is None:
        return x, norm(b, s, x, width)
    if s.norm_spelled in ("skip", "skip_default") and s.residual_scale == 1.0:
        return _skip(b, s, x, delta, width)
    total = b.op("Add", x, delta)
    return total, norm(b, s, total, width)


def _skip(b: Builder, s: Settings, x: str, delta: str, width: int) -> tuple[str, str]:
    """One node of com.microsoft for the sum and its norm; `skip_default` names no epsilon."""
    kind = "SkipSimplifiedLayerNormalization" if s.norm == "rms" else "SkipLayerNormalization"
    given = [x, delta, scale_of(b, s, width)]
    if s.norm == "layer" and s.norm_bias:
        given.append(b.weight(width, scale=0.2))
    attributes = {} if s.norm_spelled == "skip_default" else {"epsilon": s.epsilon}
    outputs = b.many(kind, given, 4, MS, **attributes)
    node = b.nodes[-1]
    node.output[1], node.output[2] = "", ""
    return outputs[3], outputs[0]


def _rms(b: Builder, s: Settings, x: str, scale: str, width: int) -> str:
    wide = b.op("Cast", x, to=FLOAT) if b.half else x
    one = b.constant(np.float32(s.epsilon))
    if s.norm_spelled == "square_sum":
        total = b.op("ReduceSumSquare", wide, b.ints(-1), keepdims=1)
        mean = b.op("Div", total, b.constant(np.float32(width)))
    else:
        two = b.constant(np.float32(2))
        square = b.op("Mul", wide, wide) if s.norm_spelled == "power" else b.op("Pow", wide, two)
        mean = b.op("ReduceMean", square, b.ints(-1), keepdims=1)
    safe = b.op("Add", mean, one)
    if s.norm_spelled == "power":
        unit = b.op("Mul", wide, b.op("Pow", safe, b.constant(np.float32(-0.5))))
    elif s.norm_spelled == "reciprocal":
        unit = b.op("Mul", wide, b.op("Reciprocal", b.op("Sqrt", safe)))
    else:
        unit = b.op("Div", wide, b.op("Sqrt", safe))
    unit = b.cast(unit) if b.half else unit
    return b.op("Mul", scale, unit) if s.norm_spelled == "reciprocal" else b.op("Mul", unit, scale)


def _layer_norm(b: Builder, s: Settings, x: str, scale: str, width: int) -> str:
    bias = b.weight(width, scale=0.2) if s.norm_bias else ""
    if s.norm_spelled in ("op", "simplified", "skip", "skip_default"):
        given = [x, scale] + ([bias] if bias else [])
        return b.op("LayerNormalization", *given, axis=-1, epsilon=s.epsilon)
    wide = b.op("Cast", x, to=FLOAT) if b.half else x
    centred = b.op("Sub", wide, b.op("ReduceMean", wide, b.ints(-1), keepdims=1))
    if s.norm_spelled == "power":
        square = b.op("Mul", centred, centred)
    else:
        square = b.op("Pow", centred, b.constant(np.float32(2)))
    variance = b.op("ReduceMean", square, b.ints(-1), keepdims=1)
    root = b.op("Sqrt", b.op("Add", variance, b.constant(np.float32(s.epsilon))))
    unit = b.op("Div", centred, root)
    unit = b.cast(unit) if b.half else unit
    scaled = b.op("Mul", unit, scale)
    return b.op("Add", scaled, bias) if bias else scaled
