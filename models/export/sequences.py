"""Parts of a tensor that torch takes by way of a sequence, without one."""

from __future__ import annotations

import onnx_ir as ir


def without_sequences(model: ir.Model) -> None:
    """Let a Gather take what a SequenceAt takes of a tensor that was split into its places along
    an axis (torch.unbind): the sequence of SplitToSequence without sizes and kept axes."""
    for node in list(model.graph):
        sequence = node.inputs[0] if node.op_type == "SequenceAt" else None
        split = None if sequence is None else sequence.producer()
        if split is None or split.op_type != "SplitToSequence" or not _places(split):
            continue
        axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
        taken = ir.node("Gather", [split.inputs[0], node.inputs[1]], {"axis": axis})
        made, out = taken.outputs[0], node.outputs[0]
        made.name, made.shape, made.type = out.name, out.shape, out.type
        model.graph.insert_after(node, taken)
        out.replace_all_uses_with(made, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        if not split.outputs[0].uses():
            model.graph.remove(split, safe=True)


def _places(split: ir.Node) -> bool:
    keeps = split.attributes["keepdims"].as_int() if "keepdims" in split.attributes else 1
    return keeps == 0 and all(v is None for v in split.inputs[1:])
