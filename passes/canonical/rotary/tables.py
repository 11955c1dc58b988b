"""How many positions the host's own tables hold: those read at positions or cut to the length."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.passes.canonical.lengths import above
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.meaning import World


def held_positions(graph: ir.Graph, measures: Measures, hidden: set[ir.Value], rows: int) -> int:
    """The most positions, and no more than `rows`, at which every weight-free table of the graph
    has the rows that are asked for. A table read at clipped positions holds any number.

    Raises CannotEvaluate and DoesNotRun for indices that cannot be looked at.
    """
    for node in graph:
        if node.outputs[0] in hidden or node.op_type not in ("Gather", "Slice"):
            continue
        reads = _gathered if node.op_type == "Gather" else _sliced
        rows = min(rows, reads(node, measures, rows))
    return rows


def _gathered(node: ir.Node, measures: Measures, rows: int) -> int:
    """The first position whose index is beyond the table; `rows` where there is none."""
    data, index = node.inputs[:2]
    if data is None or index is None:
        return rows
    sizes, dims = measures.dims(data), measures.dims(index)
    if sizes is None or dims is None or dims.count("N") != 1 or _is_square(index, measures):
        return rows
    size = sizes[(node.attributes.get_int("axis", 0) or 0) % len(sizes)]
    if not isinstance(size, int):
        return rows
    at = np.moveaxis(measures.world(1, rows).value(index), dims.index("N"), 0)
    beyond = ((at >= size) | (at < -size)).reshape(len(at), -1).any(axis=1)
    first = int(beyond.argmax())  # not 0: such an index counts from the end, and is refused as such
    return first if beyond.any() and first else rows


def _is_square(value: ir.Value, measures: Measures) -> bool:
    return any((measures.dims(v) or []).count("N") > 1 for v in above([value]))


def _sliced(node: ir.Node, measures: Measures, rows: int) -> int:
    """What a table gives where more of it is asked for than there is; else `rows`."""
    data = node.inputs[0]
    sizes = measures.dims(data) if data is not None else None
    made = measures.dims(node.outputs[0])
    if sizes is None or made is None:
        return rows
    cut = [a for a, n in enumerate(sizes) if isinstance(n, int) and made[a] == "N"]
    world = measures.world(1, rows) if cut else None
    for axis in cut:
        assert world is not None
        start, end, step = _operands(node, world, axis, len(sizes))
        size = int(sizes[axis])
        if end > size or start < -size:
            rows = min(rows, len(range(*slice(start, end, step).indices(size))))
    return rows


def _operands(node: ir.Node, world: World, axis: int, rank: int) -> tuple[int, int, int]:
    """Start, end and step of a Slice along an axis that it cuts."""
    given = [None if v is None else world.value(v).reshape(-1) for v in node.inputs[1:]]
    starts, ends, axes, steps = [*given, None, None][:4]
    assert starts is not None
    assert ends is not None
    order = list(range(len(starts))) if axes is None else [int(a) % rank for a in axes]
    place = order.index(axis)
    return int(starts[place]), int(ends[place]), 1 if steps is None else int(steps[place])
