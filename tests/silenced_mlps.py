"""A host in which MLPs add nothing to some of its rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.models.decoder import TinyDecoder


def silenced(spec: TinyDecoder, keep: np.ndarray) -> ir.Model:
    """The host whose MLPs add `keep` times what they add, and its streams around each of them."""
    model = spec.build()
    sums = [node for node in model.graph if node.op_type == "Add"][1::2]
    assert len(sums) == spec.layers
    for block, node in enumerate(sums):
        value = ir.AttrTensor("value", ir.tensor(keep[block]))
        gate = ir.Node("", "Constant", [], {"value": value})
        part = ir.Node("", "Mul", [node.inputs[1], gate.outputs[0]])
        model.graph.insert_before(node, [gate, part])
        node.replace_input_with(1, part.outputs[0])
        for name, of in (("mid", node.inputs[0]), ("full", node.outputs[0])):
            copy = ir.Node("", "Identity", [of])
            copy.outputs[0].name = f"{name}.{block}"
            model.graph.append(copy)
            model.graph.outputs.append(copy.outputs[0])
    return model
