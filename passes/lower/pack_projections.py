"""pack-projections: MatMuls that read the same rows become one MatMul and a Split."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import block_of
from graftline.passes.graph.emit import Emit, drop_unused, free_name
from graftline.passes.graph.weights import Matrix, constant, lazy, matrix, tensor_of
from graftline.passes.pipeline.graft import BLOCK, Graft, Stage
from graftline.tensors import Stacked


@dataclass(frozen=True)
class Projection:
    """One MatMul by a constant matrix, with the bias Add that follows it, if one does."""

    node: ir.Node
    matrix: Matrix
    bias: ir.Value | None
    add: ir.Node | None

    @property
    def output(self) -> ir.Value:
        return (self.add or self.node).outputs[0]


@dataclass(frozen=True)
class PackProjections(Graft):
    """Fewer, larger MatMuls: query, key and value (and gate and up with mlp=true) in one call each.
    """

    stage: ClassVar[Stage] = "lower"

    mlp: bool = False

    def requires(self, model: ir.Model) -> None:
        if all(block_of(n) is None for n in model.graph):
            raise NotApplicable("pack-projections needs stamped blocks; run anchors first")

    def apply(self, model: ir.Model) -> None:
        readers: dict[ir.Value, list[Projection]] = defaultdict(list)
        for node in model.graph:
            if node.op_type == "MatMul" and block_of(node) is not None:
                weight, rows = matrix(node.inputs[1]), node.inputs[0]
                if weight is not None and rows is not None:
                    readers[rows].append(_projection(node, weight))
        for rows, group in readers.items():
            members = group if self.mlp else [p for p in group if _feeds_attention(p)]
            if len(members) > 1:
                _pack(model.graph, rows, members, self.name())
        drop_unused(model)


def _projection(node: ir.Node, weight: Matrix) -> Projection:
    users = node.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "Add":
        for value in users[0].inputs:
            bias = constant(value)
            if bias is not None and tuple(tensor_of(bias).shape) == (weight.shape[1],):
                return Projection(node, weight, bias, users[0])
    return Projection(node, weight, None, None)


def _feeds_attention(projection: Projection) -> bool:
    seen, front = 0, list(projection.output.consumers())
    while front and seen < 12:
        node = front.pop()
        seen += 1
        if node.op_type in ("Attention", "TensorScatter"):
            return True
        if node.op_type in ("Reshape", "Transpose", "RotaryEmbedding", "RMSNormalization"):
            front += node.outputs[0].consumers()
    return False


def _pack(graph: ir.Graph, rows: ir.Value, members: list[Projection], by: str) -> None:
    first = members[0]
    emit = Emit(graph, by, first.node, block=first.node.metadata_props.get(BLOCK))
    widths = [m.matrix.shape[1] for m in members]
    name = free_name(graph, f"packed.{first.matrix.stored.name}")
    packed = Stacked([_rows(m.matrix) for m in members], name)
    turned = emit.op("Transpose", [emit.initializer(name, packed)], perm=[1, 0])
    product = emit.op("MatMul", [rows, turned])
    if any(m.bias is not None for m in members):
        bias = _bias(members, widths, f"{name}.bias")
        product = emit.op("Add", [product, emit.initializer(f"{name}.bias", bias)])
    sizes = emit.const("split." + ".".join(map(str, widths)), widths, np.int64)
    split = emit.node("Split", [product, sizes], [""] * len(members), axis=-1)
    for part, member in zip(split.outputs, members, strict=True):
        part.shape, part.type = member.output.shape, member.output.type
        member.output.replace_all_uses_with(part)


def _rows(weight: Matrix) -> ir.TensorProtocol:
    """A matrix as [out, in]: as it is stored, or transposed when it is read."""
    stored, shape = tensor_of(weight.stored), weight.shape
    if weight.turned:
        return stored
    return lazy(weight.rows, stored.dtype, shape[::-1], weight.stored.name or "")


def _bias(members: list[Projection], widths: list[int], name: str) -> ir.TensorProtocol:
    parts = [
        tensor_of(m.bias) if m.bias is not None else ir.tensor(np.zeros(width, np.float32))
        for m, width in zip(members, widths, strict=True)
    ]
    return Stacked(parts, name)
