"""Operators that compute each element of its operands' elements at the same place."""

from __future__ import annotations

import onnx_ir as ir

from graftline.passes.anchors.fields.span import Blocked, Span, joined
from graftline.passes.anchors.fields.walk import Sized, State, Walk
from graftline.passes.graph.meaning import label


def elementwise(walk: Walk, node: ir.Node) -> State:
    """Operands broadcast against one another."""
    rank = max(walk.rank(v) for v in node.inputs if v is not None)
    spans: list[Span] = []
    stops: list[Blocked] = []
    for value in node.inputs:
        state = walk.state(value)
        if isinstance(state, Span):
            spans.append(state.at(state.axis + rank - walk.rank(value)))
        elif isinstance(state, Blocked):
            stops.append(state)
        elif isinstance(state, Sized):
            stops.append(Blocked(label(node), "it reads how long the whole is"))
    whole = joined(spans, label(node))
    for value in node.inputs:
        if value is not None and walk.state(value) is None and _is_long(walk, value, whole, rank):
            stops.append(Blocked(label(node), f"it reads a table by position, {value.name}"))
    return whole.stopped(stops[0]) if stops else whole


def _is_long(walk: Walk, value: ir.Value, span: Span, rank: int) -> bool:
    """Whether an operand has numbers of its own for places along the axis."""
    axis = span.axis - (rank - walk.rank(value))
    return axis >= 0 and walk.shape(value)[axis] != 1
