"""Rotary embeddings of a generated decoder."""

from __future__ import annotations

import numpy as np

from tests.generated.builder import FLOAT, MS, Array, Builder
from tests.generated.settings import Layer, Settings


def turned_size(s: Settings) -> int:
    """How many dimensions of a head are turned; even."""
    return max(2, int(s.head_size * s.rotary_share) // 2 * 2)


def frequencies(s: Settings, layer: Layer) -> Array:
    """Radians per position, [R / 2] float32."""
    dim = turned_size(s)
    plain = layer.theta ** (-np.arange(0, dim, 2) / dim)
    return (plain / s.rotary_factor).astype(np.float32)


def rotate(b: Builder, s: Settings, layer: Layer, x: str, positions: str, heads: int) -> str:
    """`x` [B, heads, N, D], or [B, N, heads, D] with `rows_first`, turned by positions [B|1, N]."""
    if s.rotary == "none" or not layer.turned:
        return x
    if s.rotary_spelled == "op" and s.opset >= 23:
        return _op(b, s, layer, x, positions)
    if s.rotary_spelled == "ms":
        return _microsoft(b, s, layer, x, positions, heads)
    cos, sin = _angles(b, s, layer, positions)
    dim = turned_size(s)
    if dim == s.head_size:
        return _turn(b, s, x, cos, sin, dim)
    first, rest = b.slice(x, 0, dim, -1), b.slice(x, dim, s.head_size, -1)
    return b.op("Concat", _turn(b, s, first, cos, sin, dim), rest, axis=-1)


def tables(s: Settings, layer: Layer, rows: int) -> tuple[Array, Array]:
    """Cosines and sines [rows, R / 2]; "kinked" ones are a tenth larger from `odd_size` on."""
    angles = np.arange(rows, dtype=np.float32)[:, None] * frequencies(s, layer)
    cos, sin = np.cos(angles), np.sin(angles)
    if "kinked_tables" in s.odd:
        cos[s.odd_size :] *= np.float32(1.1)
        sin[s.odd_size :] *= np.float32(1.1)
    return cos, sin


def _op(b: Builder, s: Settings, layer: Layer, x: str, positions: str) -> str:
    cos, sin = (b.constant(t.astype(b.number_type)) for t in tables(s, layer, s.longest))
    dim = turned_size(s)
    partial = {"rotary_embedding_dim": dim} if dim != s.head_size else {}
    turned = b.swap(x, 0, 2, 1, 3) if s.rows_first else x
    out = b.op(
        "RotaryEmbedding", turned, cos, sin, positions,
        interleaved=int(s.rotary == "interleaved"), **partial,
    )  # fmt: skip
    return b.swap(out, 0, 2, 1, 3) if s.rows_first else out


def _microsoft(b: Builder, s: Settings, layer: Layer, x: str, positions: str, heads: int) -> str:
    cos, sin = (b.constant(t.astype(b.number_type)) for t in tables(s, layer, s.longest))
    dim = turned_size(s)
    partial = {"rotary_embedding_dim": dim, "num_heads": heads} if dim != s.head_size else {}
    flat = x if s.rows_first else b.swap(x, 0, 2, 1, 3)
    flat = b.reshape(flat, 0, 0, heads * s.head_size)
    out = b.op(
        "RotaryEmbedding", flat, positions, cos, sin, domain=MS,
        interleaved=int(s.rotary == "interleaved"), **partial,
    )  # fmt: skip
    out = b.reshape(out, 0, 0, heads, s.head_size)
    return out if s.rows_first else b.swap(out, 0, 2, 1, 3)


def _angles(b: Builder, s: Settings, layer: Layer, positions: str) -> tuple[str, str]:
    """Cosines and sines that broadcast with the heads, [.., N, R / 2]."""
    axis = 2 if s.rows_first else 1
    if s.rotary_spelled == "tables":
        kept = [b.given(t) for t in tables(s, layer, s.longest)]
        rows = [b.op("Gather", t, positions, axis=0) for t in kept]
        return b.unsqueeze(rows[0], axis), b.unsqueeze(rows[1], axis)
    at = b.op("Cast", b.unsqueeze(positions, -1), to=FLOAT)
    angle = _times_frequencies(b, s, layer, at)
    rows = [b.op("Cos", angle), b.op("Sin", angle)]
    rows = [b.cast(r) if b.half else r for r in rows]
    return b.unsqueeze(rows[0], axis), b.unsqueeze(rows[1], axis)


def _times_frequencies(b: Builder, s: Settings, layer: Layer, at: str) -> str:
    """Angles [.., N, R / 2] of float positions [.., N, 1]; of "longrope" by the longest."""
    plain = frequencies(s, layer)
    held = b.constant(plain)
    if "longrope" in s.odd:
        most = b.op("ReduceMax", at, b.ints(0, 1, 2), keepdims=0)
        far = b.op("GreaterOrEqual", most, b.constant(np.float32(s.odd_size)))
        held = b.op("Where", far, b.constant(plain / np.float32(4)), held)
    if s.rotary_spelled == "matmul":
        wide = b.unsqueeze(held, 0, 2)
        return b.swap(b.op("MatMul", wide, b.swap(at, 0, 2, 1)), 0, 2, 1)
    return b.op("Mul", at, held)


def _turn(b: Builder, s: Settings, x: str, cos: str, sin: str, dim: int) -> str:
    if s.rotary == "interleaved":
        return _interleaved(b, x, cos, sin, dim)
    if s.rotate_spelled == "split":
        first, second = b.many("Split", [x, b.ints(dim // 2, dim // 2)], 2, axis=-1)
    else:
        first, second = b.slice(x, 0, dim // 2, -1), b.slice(x, dim // 2, dim, -1)
    if s.rotate_spelled == "pieces":
        one = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
        two = b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
        return b.op("Concat", one, two, axis=-1)
    half = b.op("Concat", b.op("Neg", second), first, axis=-1)
    wide = [b.op("Concat", t, t, axis=-1) for t in (cos, sin)]
    return b.op("Add", b.op("Mul", x, wide[0]), b.op("Mul", half, wide[1]))


def _interleaved(b: Builder, x: str, cos: str, sin: str, dim: int) -> str:
    first, second = b.slice(x, 0, dim, -1, 2), b.slice(x, 1, dim, -1, 2)
    one = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
    two = b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
    pair = b.op("Concat", b.unsqueeze(one, -1), b.unsqueeze(two, -1), axis=-1)
    return b.reshape(pair, 0, 0, 0, dim)
