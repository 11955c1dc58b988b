"""The rows that a causal decoder still reads of the latents before: where, and how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.anchors.fields.find import Part, walked
from graftline.passes.anchors.fields.slides import SLIDES, sliding
from graftline.passes.anchors.fields.span import Blocked, Span
from graftline.passes.anchors.fields.walk import Walk
from graftline.passes.graph.meaning import constant, label


@dataclass(frozen=True)
class Context:
    """A `node` whose first operand, along its `axis`, begins with `rows` of the rows before; `skip`
    are the rows of its output that those alone make."""

    node: ir.Node
    axis: int
    rows: int
    skip: int = 0


def contexts(part: Part, axis: int, channels: Mapping[int, int]) -> list[Context] | Blocked:
    """Every context in graph order, none of a graph without; or the node that reads rows to come,
    or more than a fixed number of those before."""
    walk, found = walked(part, axis, channels), list[Context]()
    if isinstance(walk, Blocked):
        return walk
    for node in part.nodes:
        made, states = _of(walk, node), [walk.state(v) for v in node.outputs]
        if stop := next((s for s in states if isinstance(s, Blocked)), None):
            return stop
        if isinstance(made, Blocked):
            return made
        found += [made] if made is not None else []
    return found


def _of(walk: Walk, node: ir.Node) -> Context | Blocked | None:
    """The context of one node, None where it reads no row before its own."""
    state, made = walk.state(node.inputs[0]) if node.inputs else None, walk.state(node.outputs[0])
    if not isinstance(made, Span):
        return None
    if made.blocked is not None:
        return made.blocked
    if node.op_type not in SLIDES or not isinstance(state, Span) or made == state:
        return _local(node, made)
    if node.op_type == "Pad":
        return _pad(walk, node, state)
    if state.extra and node.op_type not in ("Conv", "Slice"):
        return Blocked(label(node), "rows that were padded or left over are read by it")
    if node.op_type == "Conv":
        return _convolution(walk, node, state, made)
    if node.op_type == "ConvTranspose":
        return _transposed(walk, node, state, made)
    if node.op_type == "Slice" and made.extra == 0 and made.left == state.left:
        return None  # what a transposed convolution has left over at the end
    return _local(node, made, state)


def _local(node: ir.Node, made: Span, state: Span | None = None) -> Blocked | None:
    """A node that reads rows at its own place alone, in whole rows."""
    if made.extra or made.right:
        return Blocked(label(node), "it reads rows that come later, or leaves some over")
    if state is not None and made.left != state.left * made.ratio / state.ratio:
        return Blocked(label(node), "what it keeps of the rows before is not known")
    return None


def _pad(walk: Walk, node: ir.Node, state: Span) -> Context | Blocked:
    made = walk.state(node.outputs[0])
    assert isinstance(made, Span)
    filled = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if (node.attributes.get_string("mode", "constant") != "constant") or (
        filled is not None and filled.any()
    ):
        return Blocked(label(node), "it pads with other numbers than zeros")
    readers = [n for n, _ in node.outputs[0].uses()]
    if state.extra or made.left <= state.left or any(n.op_type != "Conv" for n in readers):
        return Blocked(label(node), "it pads otherwise than in front of a convolution")
    front = made.left - state.left
    if made.extra != front:
        return Blocked(label(node), "it pads behind the last row")
    return Context(node, state.axis, front)


def _convolution(walk: Walk, node: ir.Node, state: Span, made: Span) -> Context | Blocked | None:
    wide, stride, front, behind, _ = sliding(walk, node, state.axis - 2)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto != "NOTSET" and walk.rank(node.inputs[0]) > 3:
        return Blocked(label(node), "its padding follows from the size")
    if stride > 1:
        return Blocked(label(node), "it makes fewer rows than it reads")
    if behind or made.extra or made.right:
        return Blocked(label(node), "it reads rows that come later")
    assert wide - 1 == front + state.extra, "what is not padded is left over"
    return Context(node, state.axis, front) if front else None


def _transposed(walk: Walk, node: ir.Node, state: Span, made: Span) -> Context | Blocked | None:
    wide, stride, front, _, _ = sliding(walk, node, state.axis - 2)
    trims = [n for n, _ in node.outputs[0].uses()]
    if front or made.right or made.extra < 0:
        return Blocked(label(node), "it reads rows that come later")
    if made.extra and any(n.op_type != "Slice" for n in trims):
        return Blocked(label(node), "rows that the next ones add to are not cut off behind it")
    rows = -(-wide // stride) - 1
    return Context(node, state.axis, rows, rows * stride) if rows else None
