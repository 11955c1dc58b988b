"""Tiny decoders of every kind, and grafts on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
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


def filled(text: str, numbers: Mapping[str, np.ndarray]) -> ir.Model:
    """ONNX text as a model, in which the inputs that `numbers` names are initializers."""
    model = ir.from_onnx_text(text)
    for value in [v for v in model.graph.inputs if v.name in numbers]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(numbers[value.name or ""], name=value.name)
        model.graph.register_initializer(value)
    return model
