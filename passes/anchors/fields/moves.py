"""Operators that move the axis, cut it or merge it with others: no number changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import onnx_ir as ir

from graftline.passes.anchors.fields.span import Blocked, Reach, Span
from graftline.passes.anchors.fields.walk import BOTH, State, Walk
from graftline.passes.graph.meaning import label


def _span(walk: Walk, node: ir.Node) -> Span:
    state = walk.state(node.inputs[0])
    assert isinstance(state, Span)
    return state


def turn(walk: Walk, node: ir.Node) -> State:
    """Transpose."""
    span = _span(walk, node)
    order = node.attributes.get_ints("perm") or range(walk.rank(node.inputs[0]))[::-1]
    return span.at(list(order).index(span.axis))


def regroup(walk: Walk, node: ir.Node) -> State:
    """Reshape, Flatten, Squeeze and Unsqueeze: the axis stays, takes in the axes behind it, or is
    cut into equal parts."""
    span = _span(walk, node)
    found: list[tuple[int, int, int]] = []
    for which in BOTH:
        have, made = walk.shape(node.inputs[0], which), walk.shape(node.outputs[0], which)
        before, size = prod(have[: span.axis]), have[span.axis]
        options = [a for a in range(len(made)) if prod(made[:a]) == before and made[a] > 1]
        if len(options) != 1:
            return Blocked(label(node), "it merges the axis with others", merged=True)
        found.append((options[0], size, made[options[0]]))
    (axis, size, made), (again, other, longer) = found
    if axis != again or made * other != longer * size:
        return Blocked(label(node), "it merges the axis with others", merged=True)
    moved = span.at(axis)
    if made == size:
        return moved
    if made % size == 0:
        up = made // size
        return Reach(up, 1, ((0, 1),) * up).of(moved, span.extra * up)
    if size % made or span.extra % (down := size // made):
        return Blocked(label(node), "it cuts the axis into unequal parts")
    return Reach(1, down, ((0, down),)).of(moved, span.extra // down)


def spread(walk: Walk, node: ir.Node) -> State:
    """Expand and Tile: more of the same, along other axes."""
    span = _span(walk, node)
    axis = span.axis + walk.rank(node.outputs[0]) - walk.rank(node.inputs[0])
    values = node.inputs[0], node.outputs[0]
    sizes = [[walk.shape(value, which) for value in values] for which in BOTH]
    if any(have[span.axis] != made[axis] for have, made in sizes):
        return span.stopped(Blocked(label(node), "it repeats the whole"))
    return span.at(axis)


def gather(walk: Walk, node: ir.Node) -> State:
    """Rows of a table at ids that follow the latents, or some channels of a value that does."""
    data, at = (walk.state(v) for v in node.inputs)
    rank = walk.rank(node.inputs[0])
    axis = (node.attributes.get_int("axis", 0)) % rank
    if isinstance(at, Span) and data is None:
        return at.at(at.axis + axis)
    if not isinstance(data, Span) or at is not None or data.axis == axis:
        return Blocked(label(node), "it reads other places by their number")
    return data.at(data.axis + (walk.rank(node.inputs[1]) - 1 if axis < data.axis else 0))


def part(walk: Walk, node: ir.Node) -> State:
    """Split along another axis."""
    span = _span(walk, node)
    axis = (node.attributes.get_int("axis", 0)) % walk.rank(node.inputs[0])
    stop = Blocked(label(node), "it splits the whole")
    return span.stopped(stop) if axis == span.axis else span


MOVES: Mapping[str, Callable[[Walk, ir.Node], State]] = {
    "Transpose": turn, "Reshape": regroup, "Flatten": regroup, "Squeeze": regroup,
    "Unsqueeze": regroup, "Expand": spread, "Tile": spread, "Gather": gather, "Split": part,
}  # fmt: skip
