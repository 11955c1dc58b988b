"""Tiny decoders lowered for TensorRT."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.recipe import recipes
from tests.passes.tiny_hosts import HOSTS as KINDS

ALL = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+norm} | "
    "reduce-logits{topk=4,entropy=true} | pack-projections"
)
HOSTS = {name: KINDS[name] for name in ("grouped", "window", "alibi", "head-of-8")}
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ir.DataType.BFLOAT16.numpy()}


READ_A_HEAD = ("head-features", "hidden-transfer", "placeholders", "refresh-state", "routers")
WITHOUT_HEADS = {r.passes for r in recipes() if not any(p in r.passes for p in READ_A_HEAD)}
"""What is made for a head, corrections or routers, such a target does not take yet."""


def host(spec: TinyDecoder = HOSTS["grouped"], softcap: float = 0.0) -> ir.Model:
    model = spec.build()
    for node in model.graph:
        if node.op_type == "Attention" and softcap:
            node.attributes["softcap"] = ir.AttrFloat32("softcap", softcap)
    infer_shapes(model)
    return model


def lowered(text: str, dtype: str, model: ir.Model, feed: Feed | None = None) -> str:
    """Lower in place; what the neutral law found, where there is a feed."""
    text = f"{text} | lower-tensorrt{{dtype={dtype},capacity=32}}"
    laws = Pipeline.parse(text, GRAFTS).run(model, feed)[-1].laws
    return next((law.text for law in laws if law.law == "neutral"), "")


def listing(model: ir.Model) -> list[str]:
    """One line per node: what it makes, of what."""
    rows: list[str] = []
    for node in model.graph:
        out = node.outputs[0]
        given = ", ".join(v.name or "" for v in node.inputs if v is not None)
        rows.append(f"{out.dtype.name if out.dtype else '?'} {node.op_type}({given})")
    return rows
