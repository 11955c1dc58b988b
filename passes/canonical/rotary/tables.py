"""How many positions the host's own tables hold: those read at positions or cut to the length."""

from __future__ import annotations

from bisect import bisect_left

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.canonical.lengths import above
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.meaning import World, label


def held_positions(graph: ir.Graph, measures: Measures, hidden: set[ir.Value], rows: int) -> int:
    """The most positions, and no more than `rows`, at which every weight-free table of the graph,
    those of rotary embeddings included, has the rows that are asked for. A table read at clipped
    positions holds any number.

    Raises NotApplicable for a table that does not even hold a first token's row, CannotEvaluate
    and DoesNotRun for indices that cannot be looked at.
    """
    for node in graph:
        if node.op_type == "RotaryEmbedding" and len(node.inputs) > 3:
            rows = _read(node, (1, 3), 0, measures, rows)
        elif node.outputs[0] in hidden:
            continue
        elif node.op_type == "Gather":
            axis = node.attributes.get_int("axis", 0) or 0
            rows = _read(node, (0, 1), axis, measures, rows)
        elif node.op_type == "Slice":
            rows = min(rows, _sliced(node, measures, rows))
    return rows


def _read(
    node: ir.Node, places: tuple[int, int], axis: int, measures: Measures, rows: int
) -> int:
    """The most positions, up to `rows`, whose indices are within an axis of the table; `places` are
    the inputs that hold table and indices."""
    data, index = (node.inputs[i] for i in places)
    if data is None or index is None:
        return rows
    sizes, dims = measures.dims(data), measures.dims(index)
    if sizes is None or dims is None or dims.count("N") != 1 or _is_square(index, measures):
        return rows
    size = sizes[axis % len(sizes)]
    if not isinstance(size, int):
        return rows

    def beyond(length: int) -> bool:
        at = measures.world(1, length).value(index)
        return bool(((at >= size) | (at < -size)).any())

    # an index may be counted from the end of the text, so each length is looked at by itself
    held = bisect_left(range(1, rows + 1), True, key=beyond)
    if not held:
        raise NotApplicable(
            f"a table of {size} rows is read beyond its end at the first token; export again with "
            "a table that is long enough", [label(node)],
        )  # fmt: skip
    return held


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
