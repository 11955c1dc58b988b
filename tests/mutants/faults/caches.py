"""Caches written at the wrong slot, or read from another layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    attentions,
    constant,
    nodes,
    of_layers,
    op,
    rewired,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import KV, LOWER
from graftline.ports import read_ports, write_ports

CHAIN = {"passes": "kv-cache | select-rows | reduce-logits"}


def _scatters(model: ir.Model, layers: Iterable[int] | None, which: int) -> list[ir.Node]:
    found: list[ir.Node] = []
    for node in of_layers(attentions(model), layers):
        value = node.inputs[which]
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "TensorScatter":
            found.append(maker)
    return found


def _slot_shifted(which: int, layers: Iterable[int] | None) -> Edit:
    def edit(model: ir.Model) -> int:
        done = 0
        for node in _scatters(model, layers, which):
            later = op(model, node, "Add", [node.inputs[2], constant(model, 1, np.int64)])
            done += rewired(node, 2, later)
        return done

    return edit


def _caches_swapped(layers: Iterable[int]) -> Edit:
    """Attention reads written keys as values and written values as keys."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            key, value = node.inputs[1:3]
            done += rewired(node, 1, value) + rewired(node, 2, key)  # type: ignore[arg-type]
        return done

    return edit


def _cache_of_another_layer(source: int, target: int, which: Iterable[int]) -> Edit:
    """A layer reads the cache that another has written."""

    def edit(model: ir.Model) -> int:
        found = attentions(model)
        if max(source, target) >= len(found):
            return 0
        return sum(rewired(found[target], w, found[source].inputs[w]) for w in which)  # type: ignore[arg-type]

    return edit


def _past_of_another_layer(source: int, target: int) -> Edit:
    """A layer's fresh keys are written into another layer's past."""

    def edit(model: ir.Model) -> int:
        if target >= len(attentions(model)):
            return 0
        (one,), (other,) = (_scatters(model, [i], 1) for i in (source, target))
        return rewired(other, 0, one.inputs[0])  # type: ignore[arg-type]

    return edit


def _past_lengths(model: ir.Model) -> int:
    """GroupQueryAttention is told of one row less than there is."""
    done = 0
    for node in nodes(model, "GroupQueryAttention"):
        one = constant(model, 1, np.int32)
        done += rewired(node, 5, op(model, node, "Sub", [node.inputs[5], one]))
    return done


def _past_order(model: ir.Model) -> int:
    """A lowered layer takes another layer's cache."""
    found = nodes(model, "GroupQueryAttention")
    if len(found) < 4:
        return 0
    return rewired(found[3], 3, found[2].inputs[3])  # type: ignore[arg-type]


def _mirrors_exchanged(one: int, other: int) -> Edit:
    """What a step writes for one layer becomes the next step's past of another."""

    def edit(model: ir.Model) -> int:
        names = {f"cache.{a}.key": f"cache.{b}.key" for a, b in ((one, other), (other, one))}
        ports = read_ports(model)
        changed = [replace(p, mirror=names.get(p.mirror or "", p.mirror)) for p in ports]
        if not any(p.name == f"cache.{other}.key" for p in ports):
            return 0
        write_ports(model, changed)
        return sum(a != b for a, b in zip(ports, changed, strict=True))

    return edit


CACHES = [
    Mutant("key-written-late", "kv-cache: KvCache._scatter", "keys are written one slot late",
           "plain", "neutral", after(KV, _slot_shifted(1, None)), CHAIN),
    Mutant("value-written-late", "kv-cache: KvCache._scatter", "values are written one slot late",
           "narrow", "neutral", after(KV, _slot_shifted(2, None)), CHAIN),
    Mutant("value-written-late-in-block-3", "kv-cache: KvCache._scatter",
           "values of block 3 are written one slot late",
           "narrow", "alike", after(KV, _slot_shifted(2, [3])), CHAIN),
    Mutant("key-and-value-caches-swapped", "kv-cache", "keys are read as values",
           "plain", "neutral", after(KV, _caches_swapped([0])), CHAIN),
    Mutant("cache-of-another-layer", "kv-cache", "block 1 attends over block 0's keys",
           "plain", "neutral", after(KV, _cache_of_another_layer(0, 1, [1])), CHAIN),
    Mutant("cache-of-another-layer-in-block-3", "kv-cache", "block 3 attends over block 2's keys",
           "plain", "alike", after(KV, _cache_of_another_layer(2, 3, [1])), CHAIN),
    Mutant("past-of-another-layer", "kv-cache", "block 1 goes on from block 0's past keys",
           "plain", "chunked", after(KV, _past_of_another_layer(0, 1)), CHAIN),
    Mutant("mirrors-exchanged", "kv-cache", "keys of blocks 0 and 1 change places between steps",
           "plain", "chunked", after(KV, _mirrors_exchanged(0, 1)), CHAIN),
    Mutant("mirrors-exchanged-in-blocks-2-3", "kv-cache",
           "keys of blocks 2 and 3 change places between steps",
           "plain", "whole", after(KV, _mirrors_exchanged(2, 3)), CHAIN),
    Mutant("past-length-short", "lower-ort: Lengths", "seqlens_k is one too small",
           "plain", "whole", after(LOWER, _past_lengths), CHAIN),
    Mutant("past-of-another-layer-lowered", "lower-ort", "block 3 takes block 2's past keys",
           "plain", "alike", after(LOWER, _past_order), CHAIN),
]  # fmt: skip
