"""Tiny decoders of every kind, and grafts on them."""

from __future__ import annotations

import onnx_ir as ir

from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes

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


def host(spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    return model


def grafted(text: str, spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = host(spec)
    Pipeline.parse(text, GRAFTS).run(model)
    return model
