"""What operators that move numbers do to the positions of a canvas; each function says why it
cannot follow them."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from graftline.passes.anchors.canvas.rows import MIXED, CanvasRows, Rows, target
from graftline.passes.graph.meaning import constant


def transposed(found: CanvasRows, node: ir.Node) -> str | None:
    value = node.inputs[0]
    assert value is not None
    rows, rank = found.rows[value], len(found.shape(value))
    order = list(node.attributes.get_ints("perm") or reversed(range(rank)))
    columns = found.columns.get(value)
    moved = Rows(order.index(rows.axis), rows.before, rows.after)
    found.note(node, moved, None if columns is None else order.index(columns))
    return None


def reshaped(found: CanvasRows, node: ir.Node) -> str | None:
    """Positions stay an axis of their own, at which as many elements are in front as before."""
    value, out = node.inputs[0], node.outputs[0]
    if value not in found.rows or value in found.columns or not (made := found.shape(out)):
        return MIXED
    rows, shape = found.rows[value], found.shape(value)
    front = prod(shape[: rows.axis])
    axes = [a for a, d in enumerate(made) if d == shape[rows.axis] and prod(made[:a]) == front]
    if len(axes) != 1:
        return "positions are joined with other axes"
    found.note(node, Rows(axes[0], rows.before, rows.after))
    if node.op_type == "Reshape":
        if target(found, node) is None:
            return "its shape follows from no size"
        found.reshapes.append(node)
    return None


def taken(found: CanvasRows, node: ir.Node) -> str | None:
    """Rows of a table, or of another axis than that of positions."""
    value, indices = node.inputs
    axis = int(node.attributes.get_int("axis", 0) or 0) % max(1, len(found.shape(value)))
    if value not in found.rows and indices in found.rows:
        rows = found.rows[indices]
        found.note(node, Rows(axis + rows.axis, rows.before, rows.after))
        return None if axis == 0 else "a table is read along an axis that is not its first"
    if indices in found.rows or value in found.columns or value is None:
        return MIXED
    rows = found.rows[value]
    if axis == rows.axis:
        return "some of the positions are taken"
    gone = 1 - len(found.shape(indices)) if axis < rows.axis else 0
    found.note(node, Rows(rows.axis - gone, rows.before, rows.after))
    return None


def split(found: CanvasRows, node: ir.Node) -> str | None:
    value = node.inputs[0]
    if value not in found.rows or value in found.columns:
        return MIXED
    axis = int(node.attributes.get_int("axis", 0) or 0) % len(found.shape(value))
    if axis == found.rows[value].axis:
        return "some of the positions are taken"
    found.note(node, found.rows[value])
    return None


def joined(found: CanvasRows, node: ir.Node) -> str | None:
    """Along another axis, or with fixed rows before and after."""
    if any(v in found.columns for v in node.inputs):
        return MIXED
    parts = [found.rows.get(v) if v is not None else None for v in node.inputs]
    own = {r for r in parts if r is not None}
    axis = int(node.attributes["axis"].as_int()) % len(found.shape(node.outputs[0]))
    if len(own) != 1:
        return "it joins positions in different places"
    rows = own.pop()
    if axis != rows.axis:
        for place, part in enumerate(parts):
            if part is None:
                found.tables.append((node, place, rows))
        found.note(node, rows)
        return None
    place = next(n for n, r in enumerate(parts) if r is not None)
    if parts.count(None) + 1 != len(parts):
        return "it joins the positions of a canvas twice"
    longs = [found.shape(v)[axis] for v in node.inputs]
    before, after = sum(longs[:place]), sum(longs[place + 1 :])
    found.note(node, Rows(axis, rows.before + before, rows.after + after))
    return None


def sliced(found: CanvasRows, node: ir.Node) -> str | None:
    """Of another axis; or it takes fixed rows away."""
    value, *said = node.inputs
    if value is None or value not in found.rows or value in found.columns:
        return MIXED
    given = [constant(v) for v in said if v is not None]
    if any(array is None for array in given) or len(given) < len(said):
        return "where it begins and ends is not fixed"
    starts, ends, *more = [array for array in given if array is not None]
    rows, rank = found.rows[value], len(found.shape(value))
    axes = more[0] if more else np.arange(len(starts))
    steps = more[1] if len(more) > 1 else np.ones(len(starts), np.int64)
    places = [n for n, a in enumerate(axes.tolist()) if a % rank == rows.axis]
    if not places:
        found.note(node, rows)
        return None
    (place,), long = places, found.whole(rows)
    taken = slice(int(starts[place]), int(ends[place]), int(steps[place]))
    begin, end, step = taken.indices(long)
    if step != 1 or begin > rows.before or end < rows.before + found.positions:
        return "some of the positions are taken"
    left = Rows(rows.axis, rows.before - begin, end - rows.before - found.positions)
    found.cuts.append((node, place))
    found.note(node, left)
    return None
