"""Concrete shapes of every value at a choice of sizes, without touching a weight."""

from __future__ import annotations

import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.graph.meaning import World, sizes_of
from graftline.passes.graph.shapes.operands import Shape
from graftline.passes.graph.shapes.rules import shapes_of


class Measure:
    """Shapes of all values of a graph in one world, computed in graph order; None where unknown."""

    def __init__(self, graph: ir.Graph, world: World) -> None:
        self.shapes: dict[ir.Value, Shape | None] = {}
        self.world = world
        world.shapes = self.shapes
        for node in graph:
            self._node(node)

    def of(self, value: ir.Value | None) -> Shape | None:
        """Shape of a value, or None when it depends on data."""
        if value is None:
            return None
        if value in self.shapes:
            return self.shapes[value]
        if value in self.world.known:
            return self.world.known[value].shape
        if value.const_value is not None:
            return sizes_of(value.const_value)
        return None

    def values(self, value: ir.Value | None) -> Array:
        """The value of a shape operand."""
        if value is None:
            raise NotApplicable("a shape operand is missing")
        return self.world.value(value)

    def _node(self, node: ir.Node) -> None:
        try:
            found = shapes_of(node, self)
        except CannotEvaluate:
            # data-dependent or unknown: whoever needs this shape will say so
            found = []
        for i, value in enumerate(node.outputs):
            self.shapes[value] = found[i] if i < len(found) else None
