"""What operators that compute do to the positions of a canvas; each function says why it cannot
follow them."""

from __future__ import annotations

import onnx_ir as ir

from graftline.passes.anchors.canvas.rows import MIXED, CanvasRows, Rows
from graftline.passes.graph.meaning import constant

EACH = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "Equal", "Less",
    "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Not", "Neg", "Abs", "Sqrt",
    "Reciprocal", "Exp", "Log", "Erf", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Softsign",
    "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "Swish", "Mish", "HardSigmoid", "HardSwish",
    "Clip", "Round", "Floor", "Ceil", "Sign", "PRelu", "Cast", "CastLike", "Identity", "Dropout",
})  # fmt: skip
"""Operators that compute each element of those in its place."""
ALONG = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LpNormalization": -1, "ArgMax": 0, "ArgMin": 0,
}  # fmt: skip
"""Operators that run over one axis, and which it is where they do not say."""
BEHIND = frozenset({"LayerNormalization", "RMSNormalization"})
"""Operators that run over an axis and all behind it."""
REDUCES = frozenset({
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2",
})  # fmt: skip
"""Operators that run over the axes that they name."""


def each(found: CanvasRows, node: ir.Node) -> str | None:
    """Operands are aligned at their last axes."""
    out = node.outputs[0]
    rank = len(found.shape(out))
    placed = {
        (r.axis + rank - len(found.shape(v)), r.before, r.after)
        for v in node.inputs
        if v is not None and (r := found.rows.get(v)) is not None
    }
    columns = {
        found.columns[v] + rank - len(found.shape(v))
        for v in node.inputs
        if v is not None and v in found.columns
    }
    if len(placed) > 1 or len(columns) > 1:
        return "it meets positions in different places"
    rows = Rows(*placed.pop())
    for place, value in enumerate(node.inputs):
        if value is None or value in found.rows:
            continue
        axis = rows.axis - rank + len(shape := found.shape(value))
        if axis >= 0 and shape[axis] != 1:
            if shape[axis] != found.whole(rows):
                return f"it meets {shape[axis]} rows at {found.whole(rows)}"
            found.tables.append((node, place, rows))
    found.note(node, rows, columns.pop() if columns else None)
    return None


def product(found: CanvasRows, node: ir.Node) -> str | None:
    """A product of rows with a weight; of queries and keys; of shares and values."""
    one, other = node.inputs
    ranks, rank = [len(found.shape(v)) for v in (one, other)], len(found.shape(node.outputs[0]))
    mine, theirs = (found.rows.get(v) if v is not None else None for v in (one, other))
    columns = found.columns.get(one) if one is not None else None
    if mine is None or min(ranks) < 2:
        return MIXED
    lifted = Rows(mine.axis + rank - ranks[0], mine.before, mine.after)
    if mine.axis == ranks[0] - 1 or (theirs is None and columns is not None):
        return MIXED
    if theirs is None:
        across = mine.axis + ranks[1] - ranks[0]
        if 0 <= across < ranks[1] - 2 and found.shape(other)[across] != 1:
            return "each position has a weight of its own"
        found.note(node, lifted)
        return None
    if mine.axis != ranks[0] - 2:
        return MIXED
    found.attended.append((node, 1))
    if columns is None and theirs.axis == ranks[1] - 1:
        found.note(node, lifted, rank - 1)
    elif columns == ranks[0] - 1 and theirs.axis == ranks[1] - 2:
        found.note(node, lifted)
    else:
        return MIXED
    return None


def attention(found: CanvasRows, node: ir.Node) -> str | None:
    """Queries [B, H, N, D] or [B, N, H * D]; keys and values of the canvas, or of a condition."""
    query, *others = node.inputs[:3]
    rows = found.rows.get(query) if query is not None else None
    if rows is None or rows.axis != len(found.shape(query)) - 2:
        return MIXED
    if any(v is not None for v in node.inputs[3:]) or node.attributes.get_int("is_causal", 0):
        return "it hides positions, or keeps its own"
    for place, value in enumerate(others, 1):
        theirs = found.rows.get(value) if value is not None else None
        if theirs is not None and theirs.axis != len(found.shape(value)) - 2:
            return MIXED
        if theirs is not None:
            found.attended.append((node, place))
    found.note(node, rows)
    return None


def along(found: CanvasRows, node: ir.Node) -> str | None:
    """Over one axis that is not that of positions; a softmax may run over those attended to."""
    value = node.inputs[0]
    assert value is not None
    rows, rank = found.rows[value], len(found.shape(value))
    axis = int(node.attributes.get_int("axis", ALONG[node.op_type]) or 0) % rank
    if axis == rows.axis or (axis == found.columns.get(value) and node.op_type != "Softmax"):
        return MIXED
    if node.op_type.startswith("Arg"):
        if not node.attributes.get_int("keepdims", 1) and axis < rows.axis:
            rows = Rows(rows.axis - 1, rows.before, rows.after)
        found.note(node, rows)
        return None
    found.note(node, rows, found.columns.get(value))
    return None


def behind(found: CanvasRows, node: ir.Node) -> str | None:
    """Over an axis and all behind it."""
    value = node.inputs[0]
    if value not in found.rows or value in found.columns:
        return MIXED
    rows, rank = found.rows[value], len(found.shape(value))
    if rows.axis >= int(node.attributes.get_int("axis", -1) or 0) % rank:
        return MIXED
    found.rows[node.outputs[0]] = rows  # its mean and deviation are nobody's
    return None if len(node.outputs) == 1 else "its statistics are read"


def reduced(found: CanvasRows, node: ir.Node) -> str | None:
    """Over axes that are not that of positions."""
    value = node.inputs[0]
    assert value is not None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None or value in found.columns:
        return MIXED
    rows, rank = found.rows[value], len(found.shape(value))
    over = {int(a) % rank for a in axes.reshape(-1)}
    if rows.axis in over:
        return MIXED
    gone = 0 if node.attributes.get_int("keepdims", 1) else sum(a < rows.axis for a in over)
    found.note(node, Rows(rows.axis - gone, rows.before, rows.after))
    return None
