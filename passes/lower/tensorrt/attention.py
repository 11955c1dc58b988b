"""Attention as TensorRT takes it: its mask, its scale, and plain ops for what it has no kernel for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.passes.grafts.masks import shift_biases
from graftline.passes.graph.emit import Emit
from graftline.passes.lower.tensorrt.importable import key_and_value_size


@dataclass
class AttentionLowering:
    """Rewrites the Attention nodes of a graph; `rounded` when activations will leave fp32."""

    graph: ir.Graph
    by: str
    rounded: bool

    def apply(self) -> None:
        """Rewrite every node."""
        nodes = [n for n in self.graph if n.op_type == "Attention"]
        if self.rounded:
            shift_biases(self.graph, nodes, self.by)
        for node in nodes:
            mask = node.inputs[3] if len(node.inputs) > 3 else None
            if mask is not None and mask.dtype == ir.DataType.BOOL and len(mask.uses()) > 1:
                self._own_mask(node, mask)
            keys, values = key_and_value_size(node)
            if node.attributes.get_float("softcap", 0.0) or keys != values:
                PlainAttention(Emit(self.graph, self.by, node), node).write()
            else:
                self._fold_scale(node)

    def _own_mask(self, node: ir.Node, mask: ir.Value) -> None:
        """Give an attention a mask tensor that no other reads: mask AND mask, which is the mask.

        TensorRT-RTX 1.7 names an operation after the mask in every fused attention of dynamic shape
        and then refuses two of one name. Identity and pairs of Casts it would remove.
        """
        made = Emit(self.graph, self.by, node).op("And", [mask, mask])
        made.shape, made.type = mask.shape, mask.type
        node.replace_input_with(3, made)

    def _fold_scale(self, node: ir.Node) -> None:
        """Scale the N query rows: the importer would scale all S keys of the cache in every step.
        """
        factor = scale_of(node)
        if factor is None or factor == 1:
            return
        emit = Emit(self.graph, self.by, node)
        node.replace_input_with(0, scaled_query(emit, node, factor))
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def scale_of(node: ir.Node) -> float | None:
    """The factor of query times key; None where neither the node nor its shapes say it."""
    size = key_and_value_size(node)[0]
    default = 1 / math.sqrt(size) if size is not None else None
    return node.attributes.get_float("scale", default)


def scaled_query(emit: Emit, node: ir.Node, factor: float) -> ir.Value:
    """The query rows times `factor`."""
    query = node.inputs[0]
    assert query is not None
    constant = emit.const(f"attention.scale.{factor:.9g}", factor, np.float32)
    made = emit.op("Mul", [query, constant])
    made.shape, made.type = query.shape, query.type
    return made


@dataclass
class PlainAttention:
    """Attention with a soft cap, or values of another size than keys, in plain ops (opset 23's own
    function).

    H query heads over K key heads: rows [B, H, N, D] are read as [B, K, H/K * N, D].
    """

    emit: Emit
    node: ir.Node

    def write(self) -> None:
        """Put the ops in the node's place."""
        query, key, value, mask = [*self.node.inputs, None][:4]
        (size, out), factor = key_and_value_size(self.node), scale_of(self.node)
        assert query is not None
        assert key is not None
        assert value is not None
        assert size is not None
        assert out is not None
        assert factor is not None
        heads, groups = _heads(query), _heads(key)
        rows = self.emit.op("Shape", [query], start=2, end=3)
        slots = self.emit.op("Shape", [key], start=2, end=3)
        folded = self._shaped(scaled_query(self.emit, self.node, factor), groups, -1, size)
        turned = self._typed(self.emit.op("Transpose", [key], perm=[0, 1, 3, 2]))
        scores = self._shaped(self._step("MatMul", folded, turned), heads, rows, slots)
        scores = self._masked(self._capped(scores), mask)
        softmax = self._typed(self.emit.op("Softmax", [scores], axis=-1))
        weights = self._shaped(softmax, groups, -1, slots)
        joined = self._shaped(self._step("MatMul", weights, value), heads, rows, out)
        joined.shape = self.node.outputs[0].shape
        self.node.outputs[0].replace_all_uses_with(joined, replace_graph_outputs=True)

    def _capped(self, scores: ir.Value) -> ir.Value:
        """cap * tanh(scores / cap)."""
        cap = self.node.attributes.get_float("softcap", 0.0)
        if not cap:
            return scores
        limit = self.emit.const(f"attention.softcap.{cap:.9g}", cap, np.float32)
        return self._step("Mul", self._step("Tanh", self._step("Div", scores, limit)), limit)

    def _masked(self, scores: ir.Value, mask: ir.Value | None) -> ir.Value:
        if mask is None:
            return scores
        if mask.dtype != ir.DataType.BOOL:
            return self._step("Add", scores, mask)
        hidden = self.emit.const("attention.hidden", -np.inf, np.float32)
        return self._step("Where", mask, scores, hidden)

    def _shaped(self, value: ir.Value, *dims: int | ir.Value) -> ir.Value:
        """`value` as [B, dims]."""
        parts = [d if isinstance(d, ir.Value) else self._length(d) for d in (0, *dims)]
        shape = self.emit.op("Concat", parts, axis=0)
        return self._typed(self.emit.op("Reshape", [value, shape]))

    def _length(self, size: int) -> ir.Value:
        return self.emit.const(f"length.{size}", [size], np.int64)

    def _step(self, op: str, *inputs: ir.Value) -> ir.Value:
        return self._typed(self.emit.op(op, list(inputs)))

    def _typed(self, value: ir.Value) -> ir.Value:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return value


def _heads(value: ir.Value) -> int:
    assert value.shape is not None
    count = value.shape[1]
    assert isinstance(count, int)
    return count
