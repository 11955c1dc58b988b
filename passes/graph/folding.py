"""Replacing what depends on one number alone by constants.

A value is constant under a fixed input where it is the same numbers at every size of the other
inputs, or the same row for every member of a batch. That is found by evaluating it at several
sizes: time embeddings are expanded, gathered and concatenated in many ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.graph.emit import Emit, drop_unused
from graftline.passes.graph.meaning import World, constant

BROADCASTS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Less", "Greater", "Equal"}
)
"""Operators that read one row as that row for every member of the batch."""


ROUNDING, ROUNDING_16 = 1e-5, 2e-2
"""Largest difference, relative to the largest number, that sums in another order explain: in fp32,
and in 16 bits."""


@dataclass(frozen=True)
class Row:
    """A constant; `axis` is the axis along which every member of the batch has it, `times` over;
    None: it has no such axis."""

    array: Array
    axis: int | None
    times: int = 1


def dependents(graph: ir.Graph, source: ir.Value) -> list[ir.Node]:
    """The nodes that depend on `source` and on no other input's numbers: on constants, and on
    sizes. In order."""
    numbers: set[ir.Value] = set(graph.inputs) - {source}
    moved, found = {source}, list[ir.Node]()
    for node in graph:
        read = [v for v in node.inputs if v is not None]
        if node.op_type in ("Shape", "Size"):
            continue
        if _has_body(node) or any(v in numbers for v in read):
            numbers.update(node.outputs)
        elif any(v in moved for v in read):
            moved.update(node.outputs)
            found.append(node)
    return found


def fold(model: ir.Model, source: ir.Value, number: float, by: str) -> int:
    """Make `source`, an input of one number or one per member of the batch, that number, and
    constants of what depends on it alone; the bodies of an If that it decides take their place.
    Returns how many nodes went. The input stays, unread."""
    count = len(model.graph)
    while True:
        rows = _rows(model.graph, source, number)
        for value, row in rows.items():
            _settle(model.graph, source, value, row, rows, by)
        drop_unused(model)
        if not _take_branches(model.graph):
            break
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        if not model.graph.initializers[name].is_graph_output():
            del model.graph.initializers[name]
    return count - len(model.graph)


def _rows(graph: ir.Graph, source: ir.Value, number: float) -> dict[ir.Value, Row]:
    """What is constant once `source` is fixed, the source included."""
    nodes = dependents(graph, source)
    worlds = [_world(graph, source, number, sizes) for sizes in _sizes(graph)]
    found: dict[ir.Value, Row] = {}
    for value in [source, *(v for n in nodes for v in n.outputs if v.name)]:
        try:
            row = _row([world.value(value) for world in worlds])
        except CannotEvaluate:
            continue
        if row is not None:
            found[value] = row
    return found


def _sizes(graph: ir.Graph) -> list[dict[str, int]]:
    """Sizes of free dimensions: one member, two, and two with everything else larger."""
    batch = _batch_symbols(graph)
    free = {str(d) for v in graph.inputs for d in (v.shape or ()) if not isinstance(d, int)}
    plans = ((1, 32), (2, 32), (2, 64))
    return [{s: b if s in batch else rest for s in free} for b, rest in plans]


def _batch_symbols(graph: ir.Graph) -> set[str]:
    """The symbols of the first dimension of the inputs."""
    first = [v.shape[0] for v in graph.inputs if v.shape is not None and len(v.shape)]
    return {str(d) for d in first if not isinstance(d, int)}


def _world(graph: ir.Graph, source: ir.Value, number: float, sizes: Mapping[str, int]) -> World:
    shapes = {
        v: tuple(d if isinstance(d, int) else sizes[str(d)] for d in v.shape)
        for v in graph.inputs
        if v.shape is not None
    }
    assert source.dtype is not None
    held = np.full(shapes[source], number).astype(source.dtype.numpy())
    return World({source: held}, dict(shapes))


def _row(seen: list[Array]) -> Row | None:
    """What a value is at all sizes, where that is one thing; `seen` is it for one member of the
    batch, for two, and for two at other sizes of the rest."""
    one, two, other = seen
    if not _same(two, other):
        return None
    if _same(one, two):
        return Row(one, None)
    for axis, times in enumerate(one.shape if one.ndim == two.ndim else ()):
        first = one.take([0], axis) if times else one
        alike = (
            _same(np.repeat(first, n * times, axis), all_of) for n, all_of in ((1, one), (2, two))
        )
        if times and all(alike):
            return Row(first, axis, times)
    return None


def _same(one: Array, other: Array) -> bool:
    """Equal but for what products of another number of rows round."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind in "iub" or not one.size:
        return bool(np.array_equal(one, other))
    a, b = one.astype(np.float64), other.astype(np.float64)
    largest = max(float(np.max(np.abs(a))), float(np.max(np.abs(b))))
    limit = ROUNDING if one.dtype.itemsize >= 4 else ROUNDING_16
    return bool(np.all(np.abs(a - b) <= limit * largest))


def _settle(
    graph: ir.Graph,
    source: ir.Value,
    value: ir.Value,
    row: Row,
    folded: Mapping[ir.Value, Row],
    by: str,
) -> None:
    """Hand a constant to whoever reads `value` and is not constant itself."""
    users = [(n, i) for n, i in value.uses() if not any(v in folded for v in n.outputs)]
    if not users:
        return
    held = Emit(graph, by).const(f"folded.{value.name}", row.array)
    wide: ir.Value | None = None
    for node, place in users:
        if row.axis is None or _broadcasts(node, value, row.array.ndim - row.axis):
            node.replace_input_with(place, held)
            continue
        if wide is None:
            wide = _widened(graph, source, held, row, by)
        node.replace_input_with(place, wide)


def _broadcasts(node: ir.Node, value: ir.Value, behind: int) -> bool:
    """Whether a node gives every member the one row: another operand has a batch in that place,
    counted from the end."""
    others = [v for v in node.inputs if v is not None and v is not value]
    sizes = [v.shape[-behind] for v in others if v.shape is not None and len(v.shape) >= behind]
    return node.op_type in BROADCASTS and any(not isinstance(d, int) or d > 1 for d in sizes)


def _widened(graph: ir.Graph, source: ir.Value, held: ir.Value, row: Row, by: str) -> ir.Value:
    """The row for every member of the batch, whose size another input tells."""
    symbols = _batch_symbols(graph)
    others = [v for v in graph.inputs if v is not source and v.shape]
    leading = [v for v in others if v.shape and str(v.shape[0]) in symbols]
    if not leading:
        raise NotApplicable("no input besides the time step says how many samples there are")
    other = max(leading, key=lambda v: len(v.shape or ()))  # the sample, of most dimensions
    first = next(iter(graph))
    emit = Emit(graph, by, first)
    size = emit.op("Shape", [other], start=0, end=1)
    assert row.axis is not None
    rank = row.array.ndim
    if row.times > 1:
        size = emit.op("Mul", [size, emit.const(f"times.{row.times}", [row.times], np.int64)])
    ones = [emit.const(f"ones.{n}", np.ones(n), np.int64) for n in (row.axis, rank - row.axis - 1)]
    parts = [v for v, n in zip((ones[0], size, ones[1]), (row.axis, 1, rank), strict=True) if n]
    shape = emit.op("Concat", parts, axis=0)
    return emit.op("Expand", [held, shape])


def _has_body(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(a.type in kinds for a in node.attributes.values())


def _take_branches(graph: ir.Graph) -> bool:
    """Write the nodes of the branch in the place of every If whose condition is a constant."""
    conditions = {n: constant(n.inputs[0], 1) for n in graph if n.op_type == "If"}
    found = {n: bool(held.reshape(())) for n, held in conditions.items() if held is not None}
    for node, taken in found.items():
        branch = "then_branch" if taken else "else_branch"
        body = node.attributes[branch].as_graph()
        made, nodes = list(body.outputs), list(body)
        body.outputs.clear()
        body.remove(nodes)
        graph.insert_before(node, nodes)
        for old, new in zip(node.outputs, made, strict=True):
            new.shape, new.type = new.shape or old.shape, new.type or old.type
            name = old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = None, name
        graph.remove(node, safe=True)
    return bool(found)
