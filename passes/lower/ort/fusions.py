"""Norms with their residual Add, and products by a transposed weight, as one operator each."""

from __future__ import annotations

import onnx_ir as ir

from graftline.contrib_ops.operands import MICROSOFT
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.weights import matrix
from graftline.passes.pipeline.graft import BLOCK, ROLE


def skip_norm(graph: ir.Graph, node: ir.Node, by: str) -> None:
    """norm(a + b) as one operator that also returns a + b, where `node` is such a norm."""
    total = node.inputs[0]
    add = total.producer() if total is not None else None
    if total is None or add is None or add.op_type != "Add" or not _last_axis(node):
        return
    left, right = add.inputs
    if left is None or right is None or not _same_rows(left, right):
        return
    emit = Emit(graph, by, add, block=add.metadata_props.get(BLOCK))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    simple = node.op_type == "RMSNormalization"
    op_type = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
    inputs = [left, right, *node.inputs[1:3]]
    if any(v is None or v.producer() is not None for v in inputs[2:]):
        return
    made = emit.node(op_type, inputs, ["", "", "", ""], MICROSOFT, epsilon=epsilon)
    for old, new in ((node, made.outputs[0]), (add, made.outputs[3])):
        new.shape, new.type = old.outputs[0].shape, old.outputs[0].type
        role = old.metadata_props.pop(ROLE, None)
        if role is not None:
            made.metadata_props[ROLE] = role
        old.outputs[0].replace_all_uses_with(new, replace_graph_outputs=True)


def _last_axis(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, 2)


def _same_rows(left: ir.Value, right: ir.Value) -> bool:
    """Whether both are streams [B, N, H]: the operator repeats no row, as Add does."""
    shapes = [v.shape for v in (left, right)]
    if any(s is None or len(s) != 3 or not isinstance(s[2], int) for s in shapes):
        return False
    if any((one == 1) != (other == 1) for one, other in zip(*shapes, strict=True)):  # type: ignore[arg-type]
        return False
    constants = [v.producer() is None and not v.is_graph_input() for v in (left, right)]
    return shapes[0][2] == shapes[1][2] and not any(constants)  # type: ignore[index]


def fused_matmul(graph: ir.Graph, node: ir.Node, by: str) -> None:
    """A product by a transposed weight as FusedMatMul, which reads the weight as it is stored."""
    weight = matrix(node.inputs[1])
    if weight is None or not weight.turned:
        return
    emit = Emit(graph, by, node)
    out = node.outputs[0]
    made = emit.node("FusedMatMul", [node.inputs[0], weight.stored], [""], MICROSOFT, transB=1)
    made.metadata_props.update({k: v for k, v in node.metadata_props.items() if k == ROLE})
    new = made.outputs[0]
    name, new.shape, new.type = out.name, out.shape, out.type
    out.name = f"{name}.canonical"
    new.name = name
    out.replace_all_uses_with(new, replace_graph_outputs=True)
