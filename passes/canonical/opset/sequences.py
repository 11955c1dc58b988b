"""Pieces that exporters take from a sequence of pieces are slices of the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.passes.graph.emit import Emit, take_place
from graftline.passes.graph.meaning import scalar


def slice_sequences(graph: ir.Graph) -> None:
    """`SplitToSequence` of given sizes, of which every piece is taken by a fixed place, becomes a
    `Slice` a piece: torch exports so what it splits at sizes that are not fixed, and ONNX Runtime
    lets pieces share memory that they do not fit in."""
    for node in [n for n in graph if n.op_type == "SplitToSequence" and n.domain == ""]:
        pieces = [use.node for use in node.outputs[0].uses()]
        if _sizes(node) is None or node.outputs[0].is_graph_output():
            continue
        if all(n.op_type == "SequenceAt" and n.graph is graph and _place(n) >= 0 for n in pieces):
            for piece in pieces:
                _slice(graph, node, piece)
            graph.remove(node, safe=True)


def _sizes(node: ir.Node) -> ir.Value | None:
    """A vector of sizes; a number, or none at all, says something else."""
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if sizes is None:
        return None
    made = sizes.producer()
    rank = sizes.shape.rank() if sizes.shape is not None else None
    return sizes if rank == 1 or (made is not None and made.op_type == "Concat") else None


def _place(piece: ir.Node) -> int:
    """Which piece is taken; negative where that is counted from the end, or not fixed."""
    found = scalar(piece.inputs[1])
    return -1 if found is None else int(found)


def _slice(graph: ir.Graph, node: ir.Node, piece: ir.Node) -> None:
    emit, place = Emit(graph, "canonicalize", node), _place(piece)
    ends = emit.op("CumSum", [_sizes(node), emit.const("number.0", 0, np.int64)])
    start, end = (
        emit.op("Gather", [ends, emit.const(f"axes.{at}", [at], np.int64)]) if at >= 0
        else emit.const("axes.0", [0], np.int64)
        for at in (place - 1, place)
    )  # fmt: skip
    axis = node.attributes.get_int("axis", 0)
    axes = emit.const(f"axes.{axis}", [axis], np.int64)
    take_place(piece, [emit.op("Slice", [node.inputs[0], start, end, axes])])
