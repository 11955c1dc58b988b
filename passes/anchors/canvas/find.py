"""What the inputs and outputs of a masked generator are, told by types, shapes and an attention
that hides nothing.

MaskGIT (arXiv 2202.04200): a canvas of tokens, some of which are masked, and the scores of every
position's tokens, in as many calls as one likes.
"""

from __future__ import annotations

import onnx_ir as ir

from graftline.facts import CanvasFacts
from graftline.filling import Filling
from graftline.passes.anchors.denoiser import AUXILIARY
from graftline.passes.anchors.roles import (
    FLOATS,
    INDICES,
    OnePass,
    Role,
    dims_of,
    inputs_of,
    mismatch,
    rank_of,
)
from graftline.passes.graph.mismatch import Mismatch
from graftline.roles import CANVAS, CONDITION, SCORES

_BESIDE = frozenset({"Add", "Sub", "Where"})
"""What adds a mask to scores, or puts one into them."""
_SCALED = frozenset({"Mul", "Div", "Cast", "Identity"})


def find_canvas(graph: ir.Graph) -> OnePass | Mismatch:
    """Tokens [B, N] of a fixed number of positions, conditions, and scores [B, N, V]; or why the
    graph has none. Names do not count."""
    tokens = [v for v in inputs_of(graph) if _is_canvas(v)]
    scores = [v for v in graph.outputs if v.dtype in FLOATS and rank_of(v) == 3]
    if len(tokens) != 1 or len(scores) != 1:
        why = "its inputs and outputs are not one canvas of tokens [B, N] of a fixed length and"
        return mismatch(f"{why} its scores [B, N, V]", [*inputs_of(graph), *graph.outputs])
    positions, (_, scored, vocabulary) = dims_of(tokens[0])[1], dims_of(scores[0])
    if scored != positions or not isinstance(vocabulary, int) or vocabulary < 2:
        return mismatch("not every position of the canvas is scored", [*tokens, *scores])
    tables = [n.inputs[0] for n, place in tokens[0].uses() if n.op_type == "Gather" and place == 1]
    rows = {dims_of(table)[0] for table in tables if table is not None and rank_of(table) == 2}
    if len(rows) != 1 or not isinstance(known := rows.pop(), int):
        return mismatch("its tokens are not looked up in one table of a fixed size", tokens)
    if hidden := _hidden(graph):
        return Mismatch.at(hidden, "an attention hides positions, or there is none that hides none")
    assert isinstance(positions, int)
    mask = vocabulary if known == vocabulary + 1 else None
    conditions = [v for v in inputs_of(graph) if v not in tokens]
    inputs = [Role(v, CONDITION, f"{CONDITION}.{n}") for n, v in enumerate(conditions)]
    beside = [v for v in graph.outputs if v not in scores]
    others = tuple(Role(v, AUXILIARY, f"{AUXILIARY}.{n}") for n, v in enumerate(beside))
    facts = CanvasFacts(vocabulary, positions, mask, Filling.of(positions))
    given = (Role(tokens[0], CANVAS, CANVAS), *inputs)
    return OnePass(facts, given, Role(scores[0], SCORES, SCORES), others)


def _is_canvas(value: ir.Value) -> bool:
    dims = dims_of(value)
    long = dims[1] if len(dims) == 2 else None
    return value.dtype in INDICES and isinstance(long, int) and long > 1


def _hidden(graph: ir.Graph) -> ir.Node | ir.Value | None:
    """An attention that hides something; the graph's output where it has no attention."""
    found = False
    for node in graph:
        if node.op_type == "Attention":
            if node.attributes.get_int("is_causal", 0) or any(node.inputs[3:]):
                return node
            found = True
        elif node.op_type == "Softmax":
            maker = node.inputs[0].producer() if node.inputs[0] is not None else None
            while maker is not None and maker.op_type in _SCALED and maker.inputs[0] is not None:
                maker = maker.inputs[0].producer()
            if maker is not None and maker.op_type in _BESIDE:
                return node
            found |= maker is not None and maker.op_type == "MatMul"
    return None if found else graph.outputs[0]
