"""Shape arithmetic, evaluated: reads of activations' shapes, reshapes and empty concatenations.

Every size in a decoder is a number, B, N or B*N. What an exporter computes with dozens of nodes per
block is found by measuring the graph at several sizes and written as constants (0 keeps a
dimension, -1 takes the rest).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import World, constant, evaluate_node, label_value
from graftline.passes.graph.shapes.inference import Operator, Shape
from graftline.passes.graph.shapes.shapes import Measure

SIZES = ((2, 5), (3, 7), (2, 11))
FOLDED = 1024


class Measures:
    """The graph measured at several sizes (B, N); tokens are zeros and positions count up. Its
    tables hold `most` positions, and no more are ever fed (0: any number)."""

    def __init__(
        self, graph: ir.Graph, tokens: ir.Value, positions: ir.Value, most: int = 0
    ) -> None:
        self.graph, self.tokens, self.positions, self.most = graph, tokens, positions, most
        known: dict[ir.Node, Operator] = {}
        self.each = [Measure(graph, self.world(b, n), known) for b, n in SIZES]

    def world(self, batch: int, length: int) -> World:
        """A world of `batch` rows of `length` tokens at positions 0, 1, 2, ..."""
        ids = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % 3
        at = np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))
        return World({self.tokens: ids, self.positions: at})

    def shape(self, value: ir.Value) -> Shape:
        """Shape at the first size. Raises NotApplicable when it is unknown."""
        found = self.each[0].of(value)
        if found is None:
            cause = self._unknown(value)
            raise NotApplicable(
                f"the shape of {value.name} depends on data or on an operator without a reference "
                "implementation", [label_value(cause)],
            )  # fmt: skip
        return found

    def _unknown(self, value: ir.Value) -> ir.Value:
        """The first value above whose shape is not known."""
        node = value.producer()
        above = [v for v in node.inputs if v is not None] if node is not None else []
        odd = [v for v in above if self.each[0].of(v) is None]
        return self._unknown(odd[0]) if odd else value

    def dims(self, value: ir.Value) -> list[str | int] | None:
        """Shape as numbers and the symbols "B", "N", "B*N"; None where none of them fits."""
        shapes = [m.of(value) for m in self.each]
        return symbolic([s for s in shapes if s is not None]) if None not in shapes else None


def symbolic(rows: Sequence[Sequence[int]]) -> list[str | int] | None:
    """What each element is as B and N vary, or None when one fits no symbol."""
    if len({len(r) for r in rows}) != 1 or len(rows) != len(SIZES):
        return None
    out: list[str | int] = []
    for column in zip(*rows, strict=True):
        name = _symbol([int(c) for c in column])
        if name is None:
            return None
        out.append(name)
    return out


def _symbol(column: list[int]) -> str | int | None:
    if len(set(column)) == 1:
        return column[0]
    for name, sizes in (
        ("B", [b for b, _ in SIZES]), ("N", [n for _, n in SIZES]),
        ("B*N", [b * n for b, n in SIZES]),
    ):  # fmt: skip
        if column == sizes:
            return name
        times = column[0] // sizes[0]
        if times > 1 and column == [times * s for s in sizes]:
            return f"{times}*{name}"
    return None


def fold(model: ir.Model) -> None:
    """Evaluate nodes that read small constants only; weights and their transposes stay.

    onnxscript's folding believes the shapes that are written in the file: with those of another
    length in it, 4 of 31 generated hosts that are served are refused, and none by this.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type in ("ConstantOfShape", "Constant") and node.domain:
            continue
        if _is_parameter_math(node):
            continue
        arrays = [constant(v, FOLDED) for v in node.inputs if v is not None]
        if not arrays or any(a is None for a in arrays):
            continue
        try:
            outputs = evaluate_node(node, arrays, 24)
        except CannotEvaluate:
            continue
        if any(np.asarray(o).size > FOLDED for o in outputs):
            continue
        emit = Emit(graph, "canonicalize", at=node)
        for value, array in zip(node.outputs, outputs, strict=True):
            if value.is_graph_output():
                continue
            held = emit.initializer(f"{value.name}.folded", ir.tensor(np.asarray(array)))
            ir.convenience.replace_all_uses_with(value, held)


def _is_parameter_math(node: ir.Node) -> bool:
    """Whether a node transforms a float vector of a checkpoint: it keeps its name and its file."""
    return any(
        v is not None and v.dtype is not None and v.dtype.is_floating_point()
        and v.shape is not None and len(v.shape) >= 1 and v.const_value is not None
        and v.const_value.size > 1
        for v in node.inputs
    )  # fmt: skip


def settle_shapes(model: ir.Model, measures: Measures, hidden: set[ir.Value]) -> bool:
    """Write shape arithmetic as constants and drop what moves nothing; True when it changed."""
    graph = model.graph
    changed = False
    for node in list(graph):
        if node.op_type == "Shape" and node.inputs[0] is not measures.tokens:
            changed |= _settle_shape_read(graph, node, measures)
        elif node.op_type == "Reshape" and node.inputs[0] in (measures.tokens, measures.positions):
            changed |= _drop_noop(node, measures)
        elif node.op_type in ("Reshape", "Expand") and node.inputs[0] in hidden:
            changed |= _settle_target(graph, node, measures)
        elif node.op_type == "Concat" and node.outputs[0] in hidden:
            changed |= _drop_empty(node, measures)
        elif node.op_type == "Slice" and node.inputs[0] in hidden:
            changed |= _drop_noop(node, measures)
    return changed


def _settle_shape_read(graph: ir.Graph, node: ir.Node, measures: Measures) -> bool:
    """Read the batch and the length from `tokens` instead of from an activation."""
    try:
        rows = [m.values(node.outputs[0]) for m in measures.each]
    except CannotEvaluate:
        return False
    dims = symbolic([r.tolist() for r in rows])
    if dims is None or any(isinstance(d, str) and "*" in d for d in dims):
        return False
    emit = Emit(graph, "canonicalize", at=node)
    parts: list[ir.Value] = []
    for dim in dims:
        if dim == "B":
            parts.append(emit.op("Shape", [measures.tokens], start=0, end=1))
        elif dim == "N":
            parts.append(emit.op("Shape", [measures.tokens], start=1, end=2))
        else:
            parts.append(emit.const(f"row.{dim}", [dim], np.int64))
    new = parts[0] if len(parts) == 1 else emit.op("Concat", parts, axis=0)
    new.type = ir.TensorType(ir.DataType.INT64)
    ir.convenience.replace_all_uses_with(node.outputs[0], new)
    return True


def _settle_target(graph: ir.Graph, node: ir.Node, measures: Measures) -> bool:
    """A constant target shape for Reshape; nothing at all for one that changes no shape."""
    source, out = node.inputs[0], node.outputs[0]
    if source is None:
        return False
    before = [m.of(source) for m in measures.each]
    after = [m.of(out) for m in measures.each]
    if None in before or None in after:
        return False
    if before == after and not out.is_graph_output():
        ir.convenience.replace_all_uses_with(out, source)
        return True
    if node.op_type == "Expand" or constant(node.inputs[1]) is not None:
        return False
    target = reshape_target([b for b in before if b], [a for a in after if a])
    if target is None:
        return False
    node.attributes.pop("allowzero", None)
    name = "shape." + "_".join(str(t) for t in target)
    held = Emit(graph, "canonicalize").const(name, target, np.int64)
    node.replace_input_with(1, held)
    return True


def reshape_target(before: Sequence[Shape], after: Sequence[Shape]) -> list[int] | None:
    """Constant target of a reshape from `before` to `after` at every size, or None."""
    if len(before) != len(SIZES) or len(after) != len(SIZES):
        return None
    target: list[int] = []
    for i, column in enumerate(zip(*after, strict=True)):
        kept = all(i < len(b) and b[i] == c for b, c in zip(before, column, strict=True))
        if len(set(column)) == 1 and column[0] != 0:
            target.append(column[0])
        else:
            target.append(0 if kept else -1)
    return target if target.count(-1) <= 1 else None


def _drop_empty(node: ir.Node, measures: Measures) -> bool:
    axis = node.attributes["axis"].as_int()
    full: list[ir.Value] = []
    for value in node.inputs:
        shape = measures.each[0].of(value)
        if value is None or shape is None:
            return False
        if shape[axis] != 0:
            full.append(value)
    if len(full) == len(node.inputs) or node.outputs[0].is_graph_output():
        return False
    if len(full) > 1:
        raise NotApplicable("more than two parts are concatenated to a cache", [node.name or ""])
    ir.convenience.replace_all_uses_with(node.outputs[0], full[0])
    return True


def _drop_noop(node: ir.Node, measures: Measures) -> bool:
    """A Slice or Reshape that keeps everything, in order."""
    out, source = node.outputs[0], node.inputs[0]
    if source is None or out.is_graph_output():
        return False
    shapes = [(m.of(source), m.of(out)) for m in measures.each]
    if any(a is None or a != b for a, b in shapes):
        return False
    if node.op_type == "Slice" and len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = constant(node.inputs[4])
        if steps is None or (steps != 1).any():
            return False
    ir.convenience.replace_all_uses_with(out, source)
    return True


def dedupe(model: ir.Model) -> None:
    """Drop what nothing reads and merge equal nodes."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
