"""Attention of a generated decoder: heads, scores, masks, probabilities, caches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.generated.builder import FLOAT, INT32, MS, Builder
from tests.generated.linear import linear
from tests.generated.masks import Ports, by_distance, places, seen
from tests.generated.norms import norm
from tests.generated.rotary import rotate, tables
from tests.generated.settings import Layer, Settings


@dataclass
class Cache:
    """The past of one block, [B, kv_heads, P, D] each; empty names without one."""

    key: str = ""
    value: str = ""
    new_key: str = ""
    new_value: str = ""


def attend(b: Builder, s: Settings, layer: Layer, p: Ports, x: str, cache: Cache) -> str:
    """Attention over normalised rows `x` [B, N, H]; fills the cache's new values."""
    query, key, value = _heads(b, s, layer, p, x)
    if s.attention == "gqa":
        flat = _grouped_query(b, s, layer, p, (query, key, value), cache)
        return linear(b, s, flat, s.heads * s.head_size, s.hidden, s.biases)
    if "log_query" in s.odd:
        query = b.op("Mul", query, _log_scale(b, s, p))
    if "place_values" in s.odd:
        at = b.cast(b.unsqueeze(p.positions, 1, 3))
        value = b.op("Mul", value, b.op("Add", b.op("Mul", at, b.number(0.01)), b.number(1)))
    if s.attention in ("op4", "op3"):
        rows = _operator(b, s, layer, p, (query, key, value), cache)
    else:
        key, value = _grow(b, s, cache, key, value)
        rows = _written_out(b, s, layer, p, query, key, value)
        rows = b.reshape(b.swap(rows, 0, 2, 1, 3), 0, 0, s.heads * s.head_size)
    return linear(b, s, rows, s.heads * s.head_size, s.hidden, s.biases)


def _grow(b: Builder, s: Settings, cache: Cache, key: str, value: str) -> tuple[str, str]:
    """The past in front of new keys and values."""
    if not cache.key:
        return key, value
    if s.cache == "rows_first":
        new = [b.swap(x, 0, 2, 1, 3) for x in (key, value)]
        cache.new_key = b.op("Concat", cache.key, new[0], axis=1)
        cache.new_value = b.op("Concat", cache.value, new[1], axis=1)
        return b.swap(cache.new_key, 0, 2, 1, 3), b.swap(cache.new_value, 0, 2, 1, 3)
    cache.new_key = b.op("Concat", cache.key, key, axis=2)
    cache.new_value = b.op("Concat", cache.value, value, axis=2)
    return cache.new_key, cache.new_value


def _heads(b: Builder, s: Settings, layer: Layer, p: Ports, x: str) -> tuple[str, str, str]:
    """Queries, keys and values, [B, heads, N, D], turned; flat [B, N, heads * D] for "gqa"."""
    sizes = [n * s.head_size for n in (s.heads, s.kv_heads, s.kv_heads)]
    if s.packed:
        joined = linear(b, s, x, s.hidden, sum(sizes), s.biases, sharp=True)
        flat = b.many("Split", [joined, b.ints(*sizes)], 3, axis=-1)
    else:
        flat = [linear(b, s, x, s.hidden, n, s.biases, sharp=i < 2) for i, n in enumerate(sizes)]
    if s.attention == "gqa":
        return flat[0], flat[1], flat[2]
    out: list[str] = []
    for i, (value, count) in enumerate(zip(flat, (s.heads, s.kv_heads, s.kv_heads), strict=True)):
        heads = b.reshape(value, 0, 0, count, s.head_size)
        if s.rows_first and i < 2:
            heads = norm(b, s, heads, s.head_size) if s.qk_norm else heads
            heads = rotate(b, s, layer, heads, p.positions, count)
        heads = b.swap(heads, 0, 2, 1, 3)
        if not s.rows_first and i < 2:
            heads = norm(b, s, heads, s.head_size) if s.qk_norm else heads
            heads = rotate(b, s, layer, heads, p.positions, count)
        out.append(heads)
    return out[0], out[1], out[2]


def _log_scale(b: Builder, s: Settings, p: Ports) -> str:
    """1 + log(1 + floor(position / size)): constant up to `odd_size`, then growing."""
    at = b.op("Cast", p.positions, to=FLOAT)
    steps = b.op("Floor", b.op("Div", at, b.constant(np.float32(s.odd_size))))
    grown = b.op("Log", b.op("Add", steps, b.constant(np.float32(1))))
    return b.unsqueeze(b.cast(b.op("Add", grown, b.constant(np.float32(1)))), 1, 3)


def _repeat(b: Builder, s: Settings, p: Ports, x: str) -> str:
    """Each of the KV heads as often as query heads share it."""
    groups = s.heads // s.kv_heads
    if groups == 1 or s.repeated == "grouped":
        return x
    wide = b.unsqueeze(x, 2)
    if s.repeated == "tile":
        wide = b.op("Tile", wide, b.ints(1, 1, groups, 1, 1))
    else:
        shape = [p.batch, b.ints(s.kv_heads, groups), p.total, b.ints(s.head_size)]
        wide = b.op("Expand", wide, b.op("Concat", *shape, axis=0))
    shape = [p.batch, b.ints(s.heads), p.total, b.ints(s.head_size)]
    return b.op("Reshape", wide, b.op("Concat", *shape, axis=0))


def _products(
    b: Builder, s: Settings, p: Ports, left: str, right: str, width: str
) -> str:
    """left @ right over heads: four-dimensional, in groups, or over flat heads."""
    groups = s.heads // s.kv_heads
    if s.repeated == "grouped" and groups > 1:
        shape = [p.batch, b.ints(s.kv_heads, groups), p.length, b.ints(-1)]
        left = b.op("Reshape", left, b.op("Concat", *shape, axis=0))
        out = b.op("MatMul", left, b.unsqueeze(right, 2))
        shape = [p.batch, b.ints(s.heads), p.length, width]
        return b.op("Reshape", out, b.op("Concat", *shape, axis=0))
    if not s.flat_scores:
        return b.op("MatMul", left, right)
    flat: list[str] = []
    for x in (left, right):
        rows, columns = b.size(x, 2), b.size(x, 3)
        flat.append(b.op("Reshape", x, b.op("Concat", b.ints(-1), rows, columns, axis=0)))
    out = b.op("MatMul", flat[0], flat[1])
    shape = [p.batch, b.ints(s.heads), p.length, width]
    return b.op("Reshape", out, b.op("Concat", *shape, axis=0))


def _written_out(
    b: Builder, s: Settings, layer: Layer, p: Ports, query: str, key: str, value: str
) -> str:
    """softmax(QK^T + bias) V, [B, heads, N, D]."""
    scale = s.head_size**-0.5
    if s.scaled == "query":
        query = b.op("Mul", query, b.number(scale))
    key, value = _repeat(b, s, p, key), _repeat(b, s, p, value)
    key = b.swap(key, 0, 1, 3, 2)
    if s.scaled == "both":
        query, key = (b.op("Mul", x, b.number(scale**0.5)) for x in (query, key))
    scores = _products(b, s, p, query, key, p.total)
    if s.scaled == "scores":
        scores = b.op("Mul", scores, b.number(scale))
    if s.scaled == "divided":
        scores = b.op("Div", scores, b.number(1 / scale))
    scores = _bent(b, s, p, scores)
    bias = by_distance(b, s, p)
    if bias:
        scores = b.op("Add", scores, bias)
    scores = _masked(b, s, scores, seen(b, s, layer, p))
    weights = _softmax(b, s, p, scores)
    if "remask" in s.odd:
        at, to = places(b, s, p)
        near = b.op("Less", b.op("Sub", at, to), b.whole(s.odd_size))
        weights = b.op("Mul", weights, b.cast(near))
    if "scaled_weights" in s.odd:
        weights = b.op("Mul", weights, b.number(0.8))
    return _products(b, s, p, weights, value, b.ints(s.head_size))


def _bent(b: Builder, s: Settings, p: Ports, scores: str) -> str:
    """Scores capped, clipped or warmed."""
    if s.cap_scores:
        capped = b.op("Tanh", b.op("Div", scores, b.number(s.cap_scores)))
        scores = b.op("Mul", capped, b.number(s.cap_scores))
    if "clip_scores" in s.odd:
        scores = b.op("Clip", scores, b.number(-0.7), b.number(0.7))
    if "length_scale" in s.odd:
        length = b.op("Log", b.op("Cast", b.scalar(p.total), to=FLOAT))
        scores = b.op("Mul", scores, b.cast(length))
    return scores


def _masked(b: Builder, s: Settings, scores: str, visible: str) -> str:
    if not visible:
        return scores
    fill = b.number(max(s.fill, -65504.0) if b.half else s.fill)
    if s.mask_spelled == "where":
        return b.op("Where", visible, scores, fill)
    if s.mask_spelled == "bias" or np.isinf(s.fill):
        return b.op("Add", scores, b.op("Where", visible, b.number(0), fill))
    hidden = b.op("Sub", b.number(1), b.cast(visible))
    return b.op("Add", scores, b.op("Mul", hidden, fill))


def _softmax(b: Builder, s: Settings, p: Ports, scores: str) -> str:
    if "softmax_queries" in s.odd:
        return b.op("Softmax", scores, axis=2)
    if "softmax_heads" in s.odd:
        return b.op("Softmax", scores, axis=1)
    if "sink_logit" in s.odd:
        shape = b.op("Concat", p.batch, b.ints(s.heads), p.length, b.ints(1), axis=0)
        held = b.op("Expand", b.weight(1, s.heads, 1, 1, scale=1.0), shape)
        wide = b.op("Softmax", b.op("Concat", scores, held, axis=-1), axis=-1)
        return b.slice(wide, 0, -1, -1)
    if s.softmax == "op":
        return b.op("Softmax", scores, axis=-1)
    best = b.op("ReduceMax", scores, b.ints(-1), keepdims=1)
    power = b.op("Exp", b.op("Sub", scores, best))
    total = b.op("ReduceSum", power, b.ints(-1), keepdims=1)
    if "softmax_one" in s.odd:
        total = b.op("Add", total, b.op("Exp", b.op("Neg", best)))
    return b.op("Div", power, total)


def _operator(
    b: Builder, s: Settings, layer: Layer, p: Ports, heads: tuple[str, str, str], cache: Cache
) -> str:
    """One Attention node of opset 23, in three or four dimensions; rows [B, N, heads * D]."""
    query, key, value = heads
    visible, bias = "", by_distance(b, s, p)
    causal = s.mask_from == "trilu" and layer.sees == "full" and not (p.padding or bias or p.square)
    if not causal:
        visible = seen(b, s, layer, p)
    mask = visible
    if visible and (bias or s.mask_spelled != "where"):
        zero, fill = b.number(0), b.number(max(s.fill, -65504.0) if b.half else s.fill)
        mask = b.op("Where", visible, bias or zero, fill)
    elif bias:
        mask = bias
    attributes: dict[str, float | int] = {"is_causal": int(causal)}
    if s.cap_scores:
        attributes["softcap"] = s.cap_scores
    if s.scaled == "divided":
        attributes["scale"] = 0.7 * s.head_size**-0.5
    inside = bool(cache.key) and s.cache == "inside"
    if not inside:
        key, value = _grow(b, s, cache, key, value)
    if s.attention == "op3":
        counts = (s.heads, s.kv_heads, s.kv_heads)
        query, key, value = (
            b.reshape(b.swap(x, 0, 2, 1, 3), 0, 0, n * s.head_size)
            for x, n in zip((query, key, value), counts, strict=True)
        )
        attributes |= {"q_num_heads": s.heads, "kv_num_heads": s.kv_heads}
    if inside:
        given = [query, key, value, mask, cache.key, cache.value]
        out, cache.new_key, cache.new_value = b.many("Attention", given, 3, **attributes)
    else:
        given = [query, key, value] + ([mask] if mask else [])
        out = b.op("Attention", *given, **attributes)
    if s.attention == "op3":
        return out
    return b.reshape(b.swap(out, 0, 2, 1, 3), 0, 0, s.heads * s.head_size)


def _grouped_query(
    b: Builder, s: Settings, layer: Layer, p: Ports, heads: tuple[str, str, str], cache: Cache
) -> str:
    """com.microsoft GroupQueryAttention over a padding mask, as the GenAI builder writes it."""
    summed = b.op("ReduceSum", b.op("Cast", p.padding, to=INT32), b.ints(1), keepdims=0)
    lengths = b.op("Sub", summed, b.constant(np.asarray(1, np.int32)))
    total = b.op("Cast", b.scalar(b.size(p.padding, 1)), to=INT32)
    cos, sin = (b.constant(t.astype(b.number_type)) for t in tables(s, layer, s.longest))
    turned = s.rotary != "none" and layer.turned
    inputs = [*heads, cache.key, cache.value, lengths, total, *([cos, sin] if turned else [])]
    attributes: dict[str, float | int] = {
        "num_heads": s.heads, "kv_num_heads": s.kv_heads, "scale": s.head_size**-0.5,
        "do_rotary": int(turned), "rotary_interleaved": int(s.rotary == "interleaved"),
    }  # fmt: skip
    if layer.sees == "window":
        attributes["local_window_size"] = layer.size
    if s.cap_scores:
        attributes["softcap"] = s.cap_scores
    out, cache.new_key, cache.new_value = b.many("GroupQueryAttention", inputs, 3, MS, **attributes)
    return out
