"""A tiny decoder written directly in canonical ONNX: the host of unit tests and examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.facts import DecoderFacts, write_facts
from graftline.ports import Port, write_ports


@dataclass(frozen=True)
class TinyDecoder:
    """Sizes of a small Llama-like decoder with seeded weights; `window` > 0 makes odd layers local.
    """

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    mlp: int = 48
    vocabulary: int = 61
    positions: int = 256
    window: int = 0
    alibi: bool = False
    seed: int = 0

    def build(self) -> ir.Model:
        """The canonical graph: tokens, positions [B, N] -> logits [B, N, V], ports and facts
        stamped."""
        return _Builder(self).build()


class _Builder:
    def __init__(self, spec: TinyDecoder) -> None:
        self.spec = spec
        self.random = np.random.default_rng(spec.seed)
        self.tokens = _value("tokens", ir.DataType.INT64, ["B", "N"])
        self.positions = _value("positions", ir.DataType.INT64, ["B", "N"])
        self.graph = ir.Graph([self.tokens, self.positions], [], nodes=[], name="tiny-decoder")

    def build(self) -> ir.Model:
        s = self.spec
        angle = np.arange(s.positions)[:, None] / 100.0 ** (
            np.arange(0, s.head_size, 2) / s.head_size
        )
        self.cos = self.weight("rotary.cos", np.cos(angle))
        self.sin = self.weight("rotary.sin", np.sin(angle))
        table = self.weight("embed.weight", self.random.normal(size=(s.vocabulary, s.hidden)))
        x = self.op("Gather", [table, self.tokens])
        for layer in range(s.layers):
            x = self.op("Add", [x, self.attention(layer, self.norm(x, f"layers.{layer}.norm_a"))])
            x = self.op("Add", [x, self.mlp(layer, self.norm(x, f"layers.{layer}.norm_b"))])
        logits = self.linear(self.norm(x, "norm"), "lm_head", s.vocabulary, s.hidden)
        logits.name, logits.shape = "logits", ir.Shape(["B", "N", s.vocabulary])
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.outputs.append(logits)
        self.graph.opset_imports[""] = 24
        model = ir.Model(self.graph, ir_version=11)
        shape = ("B", "N")
        write_ports(
            model,
            [
                Port("tokens", "tokens", "in", "int64", shape),
                Port("positions", "positions", "in", "int64", shape),
                Port("logits", "logits", "out", "float32", (*shape, s.vocabulary)),
            ],
        )
        facts = DecoderFacts(
            s.vocabulary,
            s.hidden,
            s.layers,
            s.heads,
            s.kv_heads,
            s.head_size,
            s.positions,
        )
        write_facts(model, facts)
        return model

    def op(self, op_type: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self.graph.append(node)
        return node.outputs[0]

    def weight(self, name: str, array: Any, dtype: Any = np.float32) -> ir.Value:
        array_shape = np.asarray(array).shape
        tensor = ir.tensor(np.asarray(array, dtype), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array_shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def shared(self, name: str, array: Any) -> ir.Value:
        return self.graph.initializers.get(name) or self.weight(name, array, np.int64)

    def linear(self, x: ir.Value, name: str, out: int, into: int) -> ir.Value:
        matrix = self.random.normal(size=(out, into)) / np.sqrt(into)
        turned = self.op("Transpose", [self.weight(f"{name}.weight", matrix)], perm=[1, 0])
        return self.op("MatMul", [x, turned])

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        scale = self.weight(f"{name}.weight", 1 + 0.1 * self.random.normal(size=self.spec.hidden))
        return self.op("RMSNormalization", [x, scale], axis=-1, epsilon=1e-5)

    def split(self, x: ir.Value, heads: int) -> ir.Value:
        shape = self.shared(f"split.{heads}", [0, 0, heads, self.spec.head_size])
        return self.op("Transpose", [self.op("Reshape", [x, shape])], perm=[0, 2, 1, 3])

    def rotary(self, x: ir.Value) -> ir.Value:
        if self.spec.alibi:
            return x
        return self.op("RotaryEmbedding", [x, self.cos, self.sin, self.positions])

    def attention(self, layer: int, x: ir.Value) -> ir.Value:
        s, name = self.spec, f"layers.{layer}.attention"
        width = s.heads * s.head_size, s.kv_heads * s.head_size
        q = self.rotary(self.split(self.linear(x, f"{name}.q", width[0], s.hidden), s.heads))
        k = self.rotary(self.split(self.linear(x, f"{name}.k", width[1], s.hidden), s.kv_heads))
        v = self.split(self.linear(x, f"{name}.v", width[1], s.hidden), s.kv_heads)
        says = self.mask_meaning(layer)
        seen = [q, k, v] if says["kind"] == "causal" else [q, k, v, self.mask(says)]
        node = ir.node("Attention", seen, {"is_causal": 1} if len(seen) == 3 else {})
        node.metadata_props["graftline.mask"] = json.dumps(says)
        self.graph.append(node)
        rows = self.op("Transpose", [node.outputs[0]], perm=[0, 2, 1, 3])
        flat = self.op("Reshape", [rows, self.shared("join", [0, 0, width[0]])])
        return self.linear(flat, f"{name}.o", s.hidden, width[0])

    def mask_meaning(self, layer: int) -> dict[str, Any]:
        if self.spec.alibi:
            return {"kind": "alibi", "slopes": [2.0 ** -(h + 1) for h in range(self.spec.heads)]}
        if self.spec.window and layer % 2:
            return {"kind": "window", "size": self.spec.window}
        return {"kind": "causal"}

    def mask(self, says: dict[str, Any]) -> ir.Value:
        rows = self.op("Unsqueeze", [self.positions, self.shared("axes_q", [1, 3])])
        keys = self.op("Unsqueeze", [self.positions, self.shared("axes_k", [1, 2])])
        causal = self.op("LessOrEqual", [keys, rows])
        if says["kind"] == "window":
            size = self.shared("window", says["size"])
            near = self.op("Less", [self.op("Sub", [rows, keys]), size])
            return self.op("And", [causal, near])
        key = "slopes"
        slopes = np.asarray(says["slopes"]).reshape(1, -1, 1, 1)
        steep = self.graph.initializers.get(key) or self.weight(key, slopes)
        bias = self.op("Mul", [steep, self.op("Cast", [keys], to=ir.DataType.FLOAT)])
        hide = self.graph.initializers.get("hide") or self.weight("hide", -np.inf)
        return self.op("Where", [causal, bias, hide])

    def mlp(self, layer: int, x: ir.Value) -> ir.Value:
        s, name = self.spec, f"layers.{layer}.mlp"
        gate = self.linear(x, f"{name}.gate", s.mlp, s.hidden)
        up = self.linear(x, f"{name}.up", s.mlp, s.hidden)
        acted = self.op("Mul", [gate, self.op("Sigmoid", [gate])])
        return self.linear(self.op("Mul", [acted, up]), f"{name}.down", s.hidden, s.mlp)


def _value(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
