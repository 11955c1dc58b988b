"""ONNX Runtime's fused norms, as ONNX's. (onnxscript has rules for the other direction alone.)"""

from __future__ import annotations

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import label

_MAKER = "canonicalize"

_EPSILONS = {
    "SimplifiedLayerNormalization": 1e-5, "SkipSimplifiedLayerNormalization": 1e-12,
    "SkipLayerNormalization": 1e-12,
}  # fmt: skip
"""ONNX Runtime's fused norms, and their epsilon where the node says none."""


def expand_fused_norms(graph: ir.Graph) -> None:
    """ONNX Runtime's fused norms as ONNX's, which alone say of what type their results are."""
    for node in list(graph):
        if node.op_type in _EPSILONS:
            _expand_fused(graph, node)


def _expand_fused(graph: ir.Graph, node: ir.Node) -> None:
    """ONNX Runtime's fused residual norms, as Add and a norm."""
    emit = Emit(graph, _MAKER, at=node)
    skip = node.op_type.startswith("Skip")
    refuse_axis(node)
    inputs: list[ir.Value | None] = list(node.inputs) + [None] * 5
    x = inputs[0]
    layer = node.op_type == "SkipLayerNormalization"
    scale_at = 2 if skip else 1
    bias = inputs[3] if layer else None
    extra = inputs[4] if layer else inputs[3]
    if skip:
        x = emit.op("Add", [x, inputs[1]])
        x.type = node.inputs[0].type if node.inputs[0] is not None else None
        if extra is not None:
            x = emit.op("Add", [x, extra])
    scale = inputs[scale_at]
    kept = [x, scale] + ([bias] if bias is not None else [])
    new = emit.op(
        "LayerNormalization" if layer else "RMSNormalization", kept,
        axis=-1, epsilon=node.attributes.get_float("epsilon", _EPSILONS[node.op_type]),
        stash_type=1,
    )  # fmt: skip
    new.shape, new.type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_all_uses_with(node.outputs[0], new, replace_graph_outputs=True)
    if skip and len(node.outputs) > 3 and x is not None:
        ir.convenience.replace_all_uses_with(node.outputs[3], x, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def refuse_axis(node: ir.Node) -> None:
    """Raise NotApplicable where a norm goes over more than the last axis."""
    axis = node.attributes.get_int("axis", -1)
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape else 0
    if axis != -1 and axis != rank - 1:
        raise NotApplicable(
            f"a norm over the axes from {axis} on mixes tokens; only the last axis is supported",
            [label(node)],
        )
