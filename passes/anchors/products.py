"""Products of rows, as queries are, with what is known of all places."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import onnx_ir as ir

from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.shapes.shapes import Measure

PER_PLACE = frozenset({
    "Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice",
    "Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Relu", "Clip", "Exp", "Log", "Neg", "Tanh",
})  # fmt: skip
"""Operators that leave a number where it is, or move all alike."""
_WITH_ANOTHER = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})
_SIZES = frozenset({"Shape", "Size"})
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Places:
    """The places of an output [B, K, places] of this `shape`: how many they are, one row's or all
    rows'. `given` depends on any input's numbers, `own` on the features'."""

    output: ir.Value
    shape: Dims
    sizes: Measure
    given: Collection[ir.Value]
    own: Collection[ir.Value]

    @classmethod
    def of(
        cls,
        sizes: Measure,
        output: ir.Value,
        given: Collection[ir.Value],
        own: Collection[ir.Value],
    ) -> Places | Mismatch:
        """Of an output, at the sizes that were measured."""
        shape = sizes.of(output)
        if shape is None or len(shape) < 3:
            return Mismatch.at(output, "the size of its output depends on more than sizes")
        if shape[1] < 2 or prod(shape[2:]) < 2:
            return Mismatch.at(output, "its output is not scores of several classes and places")
        return cls(output, shape, sizes, given, own)

    @property
    def count(self) -> int:
        """How many one row has."""
        return prod(self.shape[2:])

    def cover(self, dims: Sequence[int]) -> bool:
        """Whether some of these dimensions, one behind another, are all places."""
        return not {self.count, self.count * self.shape[0]}.isdisjoint(_stretches(dims))


@dataclass(frozen=True)
class Product:
    """So many `rows` of numbers, the same at all places, times what is known of each place."""

    node: ir.Node
    rows: int
    features: ir.Value


def dependents_of(graph: ir.Graph, sources: Iterable[ir.Value]) -> set[ir.Value]:
    """The sources and all that depends on their numbers; sizes do not."""
    found = set(sources)
    for node in graph:
        if node.op_type in _SIZES:
            continue
        read = {v for v in node.inputs if v is not None} | _read_inside(node)
        if not read.isdisjoint(found):
            found.update(node.outputs)
    return found


def _read_inside(node: ir.Node) -> set[ir.Value]:
    """What the bodies of a node read."""
    bodies = [a for a in node.attributes.values() if a.type in _BODIES]
    graphs = [g for a in bodies
              for g in ([a.as_graph()] if a.type == _BODIES[0] else a.as_graphs())]  # fmt: skip
    return {v for g in graphs for n in g.all_nodes() for v in n.inputs if v is not None}


def _stretches(dims: Sequence[int]) -> set[int]:
    """The sizes of all dimensions one behind another, joined."""
    return {prod(dims[i:j]) for i, j in combinations(range(len(dims) + 1), 2)}


def walk(places: Places, value: ir.Value) -> ir.Node | Mismatch:
    """The node that multiplies, above nodes that treat all places alike."""
    node = value.producer()
    while node is not None:
        if node.op_type in _OPERANDS:
            return node
        ahead = [v for v in node.inputs[:1] if v is not None]
        if node.op_type in _WITH_ANOTHER:
            ahead = [v for v in node.inputs if v is not None and v in places.given]
            ahead = [v for v in ahead if places.cover(places.sizes.of(v) or ())]
            if len(ahead) != 1:
                return Mismatch.at(node, "it brings together two things that are known of places")
        elif node.op_type not in PER_PLACE:
            return Mismatch.at(node, "no product of queries with features makes its scores")
        value = ahead[0]
        node = value.producer()
    return Mismatch.at(value, "no product of queries with features makes its scores")


def product_of(places: Places, node: ir.Node) -> Product | Mismatch:
    """A node as the product of rows with what is known of places, on either side. Stored rows are
    a linear layer; what sums over places is an attention or a mean."""
    values = [v for v in node.inputs if v is not None]
    shapes = [places.sizes.of(v) for v in values]
    if len(values) != 2 or None in shapes:
        return Mismatch.at(node, "its operands are not two arrays of known sizes")
    sides = _OPERANDS[node.op_type](node, [s for s in shapes if s is not None])
    if sides is None:
        return Mismatch.at(node, "what it sums over is not one axis of both operands")
    covered = [places.cover(side.free) for side in sides]
    if any(places.count in _stretches(side.summed) for side in sides):
        return Mismatch.at(node, "it sums over places, as an attention does")
    if all(covered):
        return Mismatch.at(node, "both operands may go through all places: which does is open")
    if not any(covered):
        return Mismatch.at(node, "none of its operands goes through all places")
    there = covered.index(True)
    if values[1 - there] not in places.given:
        return Mismatch.at(node, "its rows are stored: a linear layer, where queries are computed")
    return Product(node, sides[1 - there].rows, values[there])


@dataclass(frozen=True)
class _Side:
    """Of an operand: the dimensions that are summed over, the others, and how many rows it has for
    each member of a batch."""

    summed: Dims
    free: Dims
    rows: int


def _matmul(node: ir.Node, shapes: Sequence[Dims]) -> tuple[_Side, _Side] | None:
    one, other = shapes
    if len(one) < 2 or len(other) < 2:
        return None
    free = one[:-1], (*other[:-2], other[-1])
    return _Side(one[-1:], free[0], one[-2]), _Side(other[-2:-1], free[1], other[-1])


def _einsum(node: ir.Node, shapes: Sequence[Dims]) -> tuple[_Side, _Side] | None:
    equation = node.attributes.get_string("equation", "") or ""
    left, _, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not output or len(terms) != 2 or not all(t.isalpha() for t in (*terms, output)):
        return None
    sides = list[_Side]()
    for own, other, shape in zip(terms, reversed(terms), shapes, strict=True):
        sizes = dict(zip(own, shape, strict=True))
        if set(own) - set(other) - set(output):
            return None
        summed = tuple(sizes[n] for n in own if n not in output)
        free = tuple(sizes[n] for n in own if n in output)
        sides.append(_Side(summed, free, prod(sizes[n] for n in own if n not in other)))
    return (sides[0], sides[1]) if sides[0].summed else None


_OPERANDS = {"MatMul": _matmul, "Einsum": _einsum}
