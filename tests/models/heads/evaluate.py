"""What a loaded head computes, in numpy fp64 by our names and settings alone: if a tensor went
under another's name, or a switch was read wrongly, it differs from the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftline.models.heads import Head
from graftline.models.heads.block import Block, Rope
from tests.rounding import EPSILON, sum_tolerance

Array = NDArray[np.float64]


def values(head: Head) -> dict[str, Any]:
    """All tensors of a head, floats in fp64."""
    found = {name: tensor.numpy() for name, tensor in head.tensors.items()}
    return {
        n: v.astype(np.float64) if np.issubdtype(v.dtype, np.floating) else v
        for n, v in found.items()
    }


class Weights:
    """The tensors below a prefix."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Any:
        return self.tensors[self.prefix + name]

    def under(self, name: str) -> Weights:
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def linear(self, name: str, x: Array) -> Array:
        """x @ name.weight^T, plus name.bias where there is one."""
        y = x @ self[f"{name}.weight"].T
        bias = self.tensors.get(f"{self.prefix}{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name: str, x: Array, epsilon: float, offset: float = 0.0) -> Array:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x * (self[f"{name}.weight"] + offset) / np.sqrt(mean + epsilon)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x: Array, positions: Any, rope: Rope) -> Array:
    """x [B, N, heads, D] at its positions [N], by the settings."""
    assert rope.kind == "default"
    half = rope.size // 2
    angles = np.asarray(positions, np.float64)[:, None] * rope.theta ** (-np.arange(half) / half)
    turn = np.exp(1j * angles)[:, None, :]
    part = x[..., : rope.size]
    pairs = part.reshape(*x.shape[:-1], half, 2) if rope.interleaved else None
    one, other = (
        (part[..., :half], part[..., half:]) if pairs is None else (pairs[..., 0], pairs[..., 1])
    )
    turned = (one + 1j * other) * turn
    return np.concatenate([turned.real, turned.imag, x[..., rope.size :]], axis=-1)


def attend(q: Array, k: Array, v: Array, seen: Any, scale: float) -> Array:
    """q [B, N, heads, D], k and v [B, S, KV heads, D]; seen [N, S]. -> [B, N, heads, D]."""
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bnhd,bshd->bhns", q, k) * scale
    return np.einsum("bhns,bshd->bnhd", softmax(np.where(seen, scores, -np.inf)), v)


def attention(
    w: Weights, block: Block, x: Array, positions: Any, seen: Any, context: Array | None = None
) -> Array:
    """The attention of a layer; keys and values also of `context`, before x."""
    batch, rows, size = x.shape[0], x.shape[1], block.head_size
    keyed = x if context is None else np.concatenate([context, x], axis=1)
    gates = 2 if block.gated else 1
    q = w.linear("query", x).reshape(batch, rows, block.heads, gates, size)
    k = w.linear("key", keyed).reshape(batch, -1, block.kv_heads, size)
    v = w.linear("value", keyed).reshape(batch, -1, block.kv_heads, size)
    query = q[..., 0, :]
    if block.query_norm:
        query = w.norm("query_norm", query, block.epsilon, block.norm_offset)
        k = w.norm("key_norm", k, block.epsilon, block.norm_offset)
    query = rotate(query, positions[-rows:], block.rope)
    mixed = attend(query, rotate(k, positions, block.rope), v, seen, size**-0.5)
    if block.gated:
        mixed = mixed * sigmoid(q[..., 1, :])
    return w.linear("output", mixed.reshape(batch, rows, -1))


def mlp(w: Weights, x: Array) -> Array:
    return w.linear("down", silu(w.linear("gate", x)) * w.linear("up", x))


def layer(w: Weights, block: Block, x: Array, positions: Any, seen: Any, normed: bool) -> Array:
    """An ordinary layer; `normed`: with a norm before its attention."""
    inner = w.norm("attention_norm", x, block.epsilon, block.norm_offset) if normed else x
    x = x + attention(w, block, inner, positions, seen)
    return x + mlp(w, w.norm("mlp_norm", x, block.epsilon, block.norm_offset))


def causal(rows: int, window: int = 0) -> Any:
    far = np.arange(rows)[:, None] - np.arange(rows)[None, :]
    return (far >= 0) & (far < window) if window else far >= 0


def assert_same(got: Array, want: Any, terms: int) -> None:
    """Equal but for rounding in fp64 of sums of `terms` additions."""
    limit = sum_tolerance(terms, float(np.abs(want).max())) * np.finfo(np.float64).eps / EPSILON
    np.testing.assert_allclose(got, want, rtol=0, atol=limit, equal_nan=False)
