"""Who sees whom in a generated decoder, and what is added to the scores by distance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from tests.generated.builder import BOOL, FLOAT, INT64, Array, Builder
from tests.generated.settings import Layer, Settings


@dataclass
class Ports:
    """What the parts of a decoder read: ids [B, N], extents as vectors of one, positions [B|1, N],
    and the mask inputs it has."""

    ids: str
    batch: str
    length: str
    past: str
    total: str
    positions: str = ""
    padding: str = ""
    square: str = ""
    """The mask input of rank four."""
    made: dict[tuple[object, ...], str] = field(default_factory=dict)
    """Masks that several blocks share."""


def places(b: Builder, s: Settings, p: Ports) -> tuple[str, str]:
    """Positions of queries [B|1, 1, N, 1] and keys [B|1, 1, 1, T]."""
    if s.mask_from == "positions":
        return b.unsqueeze(p.positions, 1, 3), b.unsqueeze(p.positions, 1, 2)
    if s.mask_from == "cumsum":
        ones = b.op("Cast", p.padding, to=INT64)
        counted = b.op("Sub", b.op("CumSum", ones, b.whole(1)), b.whole(1))
        recent = b.op("Slice", counted, p.past, p.total, b.ints(1))
        return b.unsqueeze(recent, 1, 3), b.unsqueeze(counted, 1, 2)
    past, total = b.scalar(p.past), b.scalar(p.total)
    queries = b.op("Range", past, total, b.whole(1))
    keys = b.op("Range", b.whole(0), total, b.whole(1))
    return b.unsqueeze(queries, 0, 1, 3), b.unsqueeze(keys, 0, 1, 2)


def seen_by(layer: Layer, query: Array, key: Array) -> Array:
    """What a kind of mask means: True where a query sees a key."""
    causal = key <= query
    if layer.sees == "window":
        return causal & (query - key < layer.size)
    if layer.sees == "sinks":
        return causal & ((query - key < layer.size) | (key < layer.sinks))
    if layer.sees == "chunk":
        return causal & (query // layer.size == key // layer.size)
    if layer.sees == "prefix":
        return causal | (key < layer.size)
    if layer.sees == "dilated":
        return causal & ((query - key) % layer.size == 0)
    return causal


def seen(b: Builder, s: Settings, layer: Layer, p: Ports) -> str:
    """True where a query sees a key, [B|1, 1, N, T]; empty when everything is seen."""
    key = ("seen", layer.sees, layer.size, layer.sinks)
    if s.shared_mask and key in p.made:
        return p.made[key]
    parts = [_own(b, s, layer, p), _padding(b, s, p)]
    if p.square and s.mask_input == "bool":
        parts.append(p.square)
    if "pad_keys" in s.odd:
        pad = b.constant(np.asarray(s.special[1], np.int32 if s.ids == "int32" else np.int64))
        parts.append(b.unsqueeze(b.op("Not", b.op("Equal", p.ids, pad)), 1, 2))
    parts = [part for part in parts if part]
    out = parts[0] if parts else ""
    for part in parts[1:]:
        out = b.op("And", out, part)
    p.made[key] = out
    return out


def _own(b: Builder, s: Settings, layer: Layer, p: Ports) -> str:
    if "bidirectional" in s.odd or s.mask_from in ("input", "none"):
        return ""
    if s.mask_from == "buffer":
        return _buffer(b, s, layer, p)
    if s.mask_from == "trilu":
        return _trilu(b, layer, p)
    query, key = places(b, s, p)
    if "anticausal" in s.odd:
        return b.op("GreaterOrEqual", key, query)
    if "strict" in s.odd:
        return b.op("Less", key, query)
    return _compared(b, s, layer, query, key)


def _compared(b: Builder, s: Settings, layer: Layer, query: str, key: str) -> str:
    causal = {
        "key<=query": lambda: b.op("LessOrEqual", key, query),
        "query>=key": lambda: b.op("GreaterOrEqual", query, key),
        "not_greater": lambda: b.op("Not", b.op("Greater", key, query)),
        "difference": lambda: b.op("GreaterOrEqual", b.op("Sub", query, key), b.whole(0)),
    }[s.compared]()
    size = b.whole(layer.size)
    if layer.sees in ("window", "sinks"):
        if s.compared == "difference":
            near = b.op("Less", b.op("Sub", query, key), size)
        elif s.compared == "not_greater":
            near = b.op("Not", b.op("LessOrEqual", key, b.op("Sub", query, size)))
        else:
            near = b.op("Greater", key, b.op("Sub", query, size))
        if layer.sees == "sinks":
            near = b.op("Or", near, b.op("Less", key, b.whole(layer.sinks)))
        return b.op("And", causal, near)
    if layer.sees == "chunk":
        same = b.op("Equal", b.op("Div", query, size), b.op("Div", key, size))
        return b.op("And", causal, same)
    if layer.sees == "prefix":
        return b.op("Or", causal, b.op("Less", key, size))
    if layer.sees == "dilated":
        stride = b.op("Mod", b.op("Sub", query, key), size)
        return b.op("And", causal, b.op("Equal", stride, b.whole(0)))
    return causal


def _trilu(b: Builder, layer: Layer, p: Ports) -> str:
    """Lower triangles of ones; windows as the difference of two."""
    square = b.op("Concat", p.length, p.total, axis=0)
    one = b.op("Expand", b.constant(np.float32(1)), square)
    lower = b.op("Trilu", one, b.scalar(p.past), upper=0)
    if layer.sees == "window":
        past = b.op("Sub", b.scalar(p.past), b.whole(layer.size))
        lower = b.op("Sub", lower, b.op("Trilu", one, past, upper=0))
    return b.unsqueeze(b.op("Cast", lower, to=BOOL), 0, 1)


def _buffer(b: Builder, s: Settings, layer: Layer, p: Ports) -> str:
    """A stored square of which the current rows and columns are taken."""
    at = np.arange(s.longest)
    square = seen_by(layer, at[:, None], at[None, :])[None, None]
    name = b.constant(square)
    rows = b.op("Slice", name, p.past, p.total, b.ints(2))
    return b.op("Slice", rows, b.ints(0), p.total, b.ints(3))


def _padding(b: Builder, s: Settings, p: Ports) -> str:
    if not p.padding:
        return ""
    if s.padding == "float32":
        flag = b.op("Greater", p.padding, b.constant(np.float32(0.5)))
    else:
        flag = p.padding if s.padding == "bool" else b.op("Cast", p.padding, to=BOOL)
    return b.unsqueeze(flag, 1, 2)


def by_distance(b: Builder, s: Settings, p: Ports) -> str:
    """What is added to the scores by place, [B|1, heads, N, T]; empty for nothing."""
    if ("bias",) in p.made:
        return p.made[("bias",)]
    parts = [_alibi(b, s, p) if s.slopes else "", _relative(b, s, p) if s.buckets else ""]
    if p.square and s.mask_input == "float32":
        parts.append(b.cast(p.square) if b.half else p.square)
    if "token_bias" in s.odd:
        told = b.op("Gather", b.weight(s.vocabulary, scale=2.0), p.ids)
        parts.append(b.unsqueeze(told, 1, 2))
    parts = [part for part in parts if part]
    out = parts[0] if parts else ""
    for part in parts[1:]:
        out = b.op("Add", out, part)
    p.made[("bias",)] = out
    return out


def _alibi(b: Builder, s: Settings, p: Ports) -> str:
    query, key = places(b, s, p)
    slopes = (2.0 ** -np.arange(1, s.heads + 1)).reshape(1, s.heads, 1, 1)
    held = b.constant(slopes.astype(b.number_type))
    if s.slopes == "keys":
        return b.op("Mul", held, b.cast(key))
    distance = b.op("Sub", key, query)
    if s.slopes == "clipped":
        distance = b.op("Max", distance, b.whole(-s.clip))
    return b.op("Mul", b.cast(distance), held)


def _relative(b: Builder, s: Settings, p: Ports) -> str:
    query, key = places(b, s, p)
    distance = b.op("Max", b.op("Sub", query, key), b.whole(0))
    if s.buckets == "logarithmic":
        index, count = _logarithmic(b, distance, s.clip), 16
    else:
        index, count = b.op("Min", distance, b.whole(s.clip)), s.clip + 1
    rows = b.op("Gather", b.weight(count, s.heads, scale=1.5), index)
    return b.op("Squeeze", b.swap(rows, 0, 4, 2, 3, 1), b.ints(-1))


def _logarithmic(b: Builder, distance: str, most: int) -> str:
    """T5's 16 buckets: eight exact, eight wider and wider up to `most`."""
    at = b.op("Cast", b.op("Max", distance, b.whole(1)), to=FLOAT)
    grown = b.op("Log", b.op("Div", at, b.constant(np.float32(8))))
    wide = b.op("Mul", grown, b.constant(np.float32(8 / math.log(most / 8))))
    large = b.op("Add", b.op("Cast", wide, to=INT64), b.whole(8))
    large = b.op("Min", large, b.whole(15))
    return b.op("Where", b.op("Less", distance, b.whole(8)), distance, large)
