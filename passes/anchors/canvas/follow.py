"""The positions of a canvas, followed through a graph of fixed length: what is fixed for each, and
what they are attended to by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graftline.passes.anchors.canvas import moves, operators
from graftline.passes.anchors.canvas.rows import CanvasRows, Rows
from graftline.passes.anchors.roles import dims_of, inputs_of
from graftline.passes.graph.meaning import World
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.shapes.shapes import Measure

BATCHES = (2, 3)
"""Rows of the canvases that shapes are measured with."""
OTHER = 5
"""What else is free in a condition."""
_SIZES = frozenset({"Shape", "Size"})


def canvas_rows(graph: ir.Graph, canvas: ir.Value) -> CanvasRows | Mismatch:
    """Follow the positions through a graph of fixed length; or the node that mixes them, or of
    which it is not known what it does to them."""
    found = CanvasRows(graph, canvas)
    for batch in BATCHES:
        found.measures.append(Measure(graph, World({}), inputs=_sizes(graph, canvas, batch)))
    found.rows[canvas] = Rows(1)
    for node in graph:
        if all(v not in found.rows for v in node.inputs) or node.op_type in _SIZES:
            continue
        if node.domain or (follow := _FOLLOWED.get(node.op_type)) is None:
            return Mismatch.at(node, "what it does to the positions of a canvas is not known")
        if odd := [v for v in node.inputs if v in found.rows and not found.shape(v)]:
            return Mismatch.at(odd[0], "its shape depends on more than sizes")
        if (why := follow(found, node)) is not None:
            return Mismatch.at(node, why)
    return found


def _sizes(graph: ir.Graph, canvas: ir.Value, batch: int) -> dict[ir.Value, tuple[int, ...]]:
    """The shapes of inputs with so many rows, which all have the symbol of the canvas's."""
    symbols = {d: batch for d in dims_of(canvas)[:1] if not isinstance(d, int)}
    return {
        v: tuple(d if isinstance(d, int) else symbols.get(d, OTHER) for d in dims_of(v))
        for v in inputs_of(graph)
    }


_FOLLOWED: Mapping[str, Callable[[CanvasRows, ir.Node], str | None]] = {
    **dict.fromkeys(operators.EACH, operators.each),
    **dict.fromkeys(operators.ALONG, operators.along),
    **dict.fromkeys(operators.BEHIND, operators.behind),
    **dict.fromkeys(operators.REDUCES, operators.reduced),
    "MatMul": operators.product, "Attention": operators.attention,
    **dict.fromkeys(("Reshape", "Unsqueeze", "Squeeze", "Flatten"), moves.reshaped),
    "Transpose": moves.transposed, "Gather": moves.taken, "Split": moves.split,
    "Concat": moves.joined, "Slice": moves.sliced,
}  # fmt: skip
"""By operator, what follows the positions through a node, and says why it cannot."""
