"""Opening a graph: functions inlined, constants lifted, and everything at opset 24.

Inlining and lifting are onnx-ir's. Neither converter of opsets does the rest: onnxscript's begins
at 18 and leaves the axes of a mean as they are (4 of 36 generated hosts at opset 13 pass); onnx's
raises all 36, but loses the metadata of all nodes, needs the weights in its proto, and fails on
bodies that read outer values, as merged decoders do (1 of 40 hosts).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import NotApplicable
from graftline.passes.canonical.opset.sequences import slice_sequences
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import label

OPSET = 24
_OLDEST = 13
_CHANGED = {"GroupNormalization": 21, "Upsample": OPSET, "Scatter": OPSET}
"""Operators that are another one from an opset on."""
_AXES_BECAME_INPUT_AT_18 = frozenset(
    [
        "ReduceMax",
        "ReduceMin",
        "ReduceMean",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceSumSquare",
    ]
)


def open_graph(model: ir.Model) -> None:
    """Inline functions, lift constants, drop identities, slice what is split into a sequence, and
    bring the graph to opset 24."""
    common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Dropout" and node.domain == "":
            ir.convenience.replace_all_uses_with(
                node.outputs[0], _only(node.inputs[0]), replace_graph_outputs=True
            )
    slice_sequences(model.graph)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    raise_opset(model)


def raise_opset(model: ir.Model) -> None:
    """Rewrite what changed between the model's opset and 24. Raises NotApplicable below 13."""
    have = model.opset_imports.get("", 0)
    if have < _OLDEST:
        raise NotApplicable(f"opset {have} is too old: export at opset 18 or later")
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        if have < _CHANGED.get(node.op_type, 0):
            raise NotApplicable(f"{node.op_type} changed since opset {have}", [label(node)])
        if have < 18 and node.op_type in _AXES_BECAME_INPUT_AT_18:
            _axes_to_input(model.graph, node)
        if have < 18 and node.op_type == "Split" and len(node.inputs) < 2:
            node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
        node.version = None
    model.opset_imports[""] = OPSET
    model.opset_imports.pop("ai.onnx", None)
    model.ir_version = max(model.ir_version or 0, 11)


def _axes_to_input(graph: ir.Graph, node: ir.Node) -> None:
    """The axes of a reduction, in a body too, as an initializer of the whole graph."""
    axes = node.attributes.pop("axes", None)
    if axes is None or len(node.inputs) > 1:
        return
    values = list(axes.as_ints())
    name = "axes." + "_".join(str(a) for a in values)
    held = Emit(graph, "canonicalize").const(name, values, np.int64)
    new = ir.node(
        node.op_type,
        [node.inputs[0], held],
        dict(node.attributes),
        name=node.name,
        num_outputs=1,
        metadata_props=dict(node.metadata_props),
    )
    new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    body = node.graph
    assert body is not None
    body.insert_before(node, new)
    ir.convenience.replace_all_uses_with(
        node.outputs[0], new.outputs[0], replace_graph_outputs=True
    )
    body.remove(node, safe=True)


def _only(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise NotApplicable("a node lacks its input")
    return value
