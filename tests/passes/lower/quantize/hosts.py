"""A small host with matrices of every kind, and what quantize made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops.quantized import dequantize
from graftline.passes.lower.quantize.quantize import Quantize

HIDDEN, WIDE, VOCABULARY = 64, 96, 40
TOKENS = {"tokens": np.arange(10, dtype=np.int64).reshape(2, 5) * 3 % VOCABULARY}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def host(head: str = "Transpose", **swap: Any) -> ir.Model:
    """Embedding, an [in, out] matrix, a turned one, scores of activations, and a tied lm_head."""
    head_text = {
        "Transpose": "turn = Transpose <perm=[1,0]> (embed)\n logits = MatMul (x3, turn)",
        "FusedMatMul": "logits = com.microsoft.FusedMatMul <transB=1> (x3, embed)",
    }[head]
    text = f"""
    <ir_version: 11, opset_import: ["" : 24, "com.microsoft" : 1]>
    host (int64[B,N] tokens) => (float[B,N,{VOCABULARY}] logits, float[B,N,N] scores)
    {{
      x0 = Gather (embed, tokens)
      x1 = MatMul (x0, up)
      x2 = Relu (x1)
      downT = Transpose <perm=[1,0]> (down)
      x3 = MatMul (x2, downT)
      x3T = Transpose <perm=[0,2,1]> (x3)
      scores = MatMul (x3, x3T)
      {head_text}
    }}"""
    model = ir.from_onnx_text(text)
    weights = {
        "embed": noise(VOCABULARY, HIDDEN),
        "up": noise(HIDDEN, WIDE),
        "down": noise(HIDDEN, WIDE),
    } | swap
    known = {v.name: v for n in model.graph for v in n.inputs if v is not None}
    for name, array in weights.items():
        known[name].const_value = ir.tensor(array, name=name)
        known[name].shape, known[name].dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        model.graph.initializers[name] = known[name]
    for node in model.graph:
        if node.outputs[0].name == "logits":
            node.metadata_props["graftline.role"] = "lm_head"
    return model


def grafted(graft: Quantize, **options: Any) -> ir.Model:
    model = host(**options)
    graft.requires(model)
    graft.apply(model)
    return model


def weight_of(node: ir.Node) -> np.ndarray:
    sizes = [node.attributes[k].as_int() for k in ("K", "block_size", "bits")]
    data, scales, zeros = (v.const_value.numpy() for v in node.inputs[1:4])
    return dequantize(data, scales, zeros, *sizes)


def made(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == "MatMulNBits"]


def distance(near: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(near - true) / np.linalg.norm(true))
