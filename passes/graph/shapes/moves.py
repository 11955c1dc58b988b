"""Shapes of the operators that move, repeat, cut or choose elements and compute nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir

from graftline.passes.graph.shapes.operands import Shape, axes, broadcast, need

if TYPE_CHECKING:
    from graftline.passes.graph.shapes.shapes import Measure


def _reshape(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = need(m.of(node.inputs[0]))
    target = [int(d) for d in m.values(node.inputs[1])]
    if not node.attributes.get_int("allowzero", 0):
        target = [shape[i] if d == 0 else d for i, d in enumerate(target)]
    if -1 in target:
        rest = math.prod(d for d in target if d != -1)
        target[target.index(-1)] = math.prod(shape) // max(rest, 1)
    return [tuple(target)]


def _expand(node: ir.Node, m: Measure) -> list[Shape | None]:
    target = tuple(int(d) for d in m.values(node.inputs[1]))
    return [broadcast(node, [need(m.of(node.inputs[0])), target])]


def _tile(node: ir.Node, m: Measure) -> list[Shape | None]:
    times = m.values(node.inputs[1])
    return [tuple(d * int(t) for d, t in zip(need(m.of(node.inputs[0])), times, strict=True))]


def _transpose(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = need(m.of(node.inputs[0]))
    perm = node.attributes.get_ints("perm", None) or tuple(reversed(range(len(shape))))
    return [tuple(shape[p] for p in perm)]


def _squeeze(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape, given = need(m.of(node.inputs[0])), axes(node, m)
    drop = (
        {i for i, d in enumerate(shape) if d == 1}
        if given is None
        else {a % len(shape) for a in given}
    )
    return [tuple(d for i, d in enumerate(shape) if i not in drop)]


def _unsqueeze(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape, added = list(need(m.of(node.inputs[0]))), axes(node, m) or []
    rank = len(shape) + len(added)
    for axis in sorted(a % rank for a in added):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _concat(node: ir.Node, m: Measure) -> list[Shape | None]:
    shapes = [need(m.of(v)) for v in node.inputs]
    axis = node.attributes["axis"].as_int() % len(shapes[0])
    first = list(shapes[0])
    first[axis] = sum(s[axis] for s in shapes)
    return [tuple(first)]


def _pad(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(need(m.of(node.inputs[0])))
    pads = [int(p) for p in m.values(node.inputs[1])]
    given = node.inputs[3] if len(node.inputs) > 3 else None
    where = range(len(shape)) if given is None else [int(a) for a in m.values(given)]
    half = len(pads) // 2
    for axis, before, after in zip(where, pads[:half], pads[half:], strict=True):
        shape[axis] += before + after
    return [tuple(shape)]


def _split(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(need(m.of(node.inputs[0])))
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = [int(s) for s in m.values(node.inputs[1])]
    else:
        count = len(node.outputs)
        each = -(-shape[axis] // count)
        sizes = [each] * (count - 1) + [shape[axis] - each * (count - 1)]
    return [tuple([*shape[:axis], s, *shape[axis + 1 :]]) for s in sizes]


def _slice(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(need(m.of(node.inputs[0])))
    operands = [m.values(v) if v is not None else None for v in node.inputs[1:]]
    starts, ends = operands[0], operands[1]
    cut = operands[2] if len(operands) > 2 and operands[2] is not None else range(len(shape))
    steps = operands[3] if len(operands) > 3 else None
    if starts is None or ends is None:
        return [None]
    for i, (axis, start, end) in enumerate(zip(cut, starts, ends, strict=False)):
        step = 1 if steps is None else int(steps[i])
        length = shape[int(axis)]
        shape[int(axis)] = len(range(*slice(int(start), int(end), step).indices(length)))
    return [tuple(shape)]


def _gather(node: ir.Node, m: Measure) -> list[Shape | None]:
    data, at = need(m.of(node.inputs[0])), need(m.of(node.inputs[1]))
    axis = node.attributes.get_int("axis", 0) % len(data)
    return [(*data[:axis], *at, *data[axis + 1 :])]


def _gather_elements(node: ir.Node, m: Measure) -> list[Shape | None]:
    return [m.of(node.inputs[1])]


def _gather_nd(node: ir.Node, m: Measure) -> list[Shape | None]:
    data, at = need(m.of(node.inputs[0])), need(m.of(node.inputs[1]))
    batch = node.attributes.get_int("batch_dims", 0)
    return [(*at[:-1], *data[batch + at[-1] :])]


def _topk(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(need(m.of(node.inputs[0])))
    shape[node.attributes.get_int("axis", -1)] = int(m.values(node.inputs[1]).reshape(()))
    return [tuple(shape), tuple(shape)]


def _one_hot(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = list(need(m.of(node.inputs[0])))
    axis = node.attributes.get_int("axis", -1) % (len(shape) + 1)
    shape.insert(axis, int(m.values(node.inputs[1]).reshape(())))
    return [tuple(shape)]


def _flatten(node: ir.Node, m: Measure) -> list[Shape | None]:
    shape = need(m.of(node.inputs[0]))
    axis = node.attributes.get_int("axis", 1)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


MOVES = {
    "Reshape": _reshape, "Expand": _expand, "Tile": _tile, "Transpose": _transpose,
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Concat": _concat, "Split": _split,
    "Slice": _slice, "Pad": _pad, "Gather": _gather, "GatherElements": _gather_elements,
    "GatherND": _gather_nd, "TopK": _topk, "OneHot": _one_hot, "Flatten": _flatten,
}  # fmt: skip
"""The rule of each of them: the shapes of a node's outputs."""
