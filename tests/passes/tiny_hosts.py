"""Tiny decoders of every kind, and grafts on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import Port, read_ports, write_ports
from graftline.roles import chain_feed

ALL = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+norm} | "
    "reduce-logits{topk=4,entropy=true} | pack-projections{mlp=true} | lower-ort"
)
HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=3, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "one-block": TinyDecoder(layers=1),
    "head-of-8": TinyDecoder(head_size=8),
    "head-of-4": TinyDecoder(head_size=4),
}

OTHER = "other."
"""Put before every name of a renamed host."""
CANONICAL = (
    Port("tokens", "tokens", "in", "int64", ("B", "N")),
    Port("positions", "positions", "in", "int64", ("B", "N")),
)


def decoder_feed(vocabulary: int, batch: int = 2, rows: int = 24, seed: int = 0) -> Feed:
    """Seeded tokens and positions under their canonical names."""
    return chain_feed(CANONICAL, vocabulary, batch, rows, seed)


def rename(model: ir.Model) -> None:
    """Give every input and output another name; its port says so."""
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = f"{OTHER}{value.name}"
    write_ports(model, [_renamed(p) for p in read_ports(model)])


def _renamed(port: Port) -> Port:
    other = {k: f"{OTHER}{v}" for k in ("name", "mirror", "valid_by") if (v := getattr(port, k))}
    return replace(port, **other)


def host(spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    return model


def grafted(text: str, spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = host(spec)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def filled(text: str, numbers: Mapping[str, np.ndarray]) -> ir.Model:
    """ONNX text as a model, in which the inputs that `numbers` names are initializers."""
    model = ir.from_onnx_text(text)
    for value in [v for v in model.graph.inputs if v.name in numbers]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(numbers[value.name or ""], name=value.name)
        model.graph.register_initializer(value)
    return model
