"""What the shape rules of operators share: known shapes, broadcasting, and axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.passes.graph.meaning import label

if TYPE_CHECKING:
    from graftline.passes.graph.shapes.shapes import Measure

Shape = tuple[int, ...]


def need(shape: Shape | None) -> Shape:
    """A shape that a rule cannot do without. Raises CannotEvaluate."""
    if shape is None:
        raise CannotEvaluate("unknown shape")
    return shape


def broadcast(node: ir.Node, shapes: list[Shape]) -> Shape:
    """The shape that all broadcast to. Raises NotApplicable naming the node."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        sizes = " and ".join(str(s) for s in shapes)
        raise NotApplicable(
            f"shapes {sizes} do not match: the graph was exported for fixed sizes; export it "
            "with a dynamic batch and length", [label(node)],
        ) from None  # fmt: skip


def axes(node: ir.Node, m: Measure, index: int = 1) -> list[int] | None:
    """The axes of a node, an input or an attribute; None where it has neither."""
    if len(node.inputs) > index and node.inputs[index] is not None:
        return [int(a) for a in m.values(node.inputs[index])]
    ints = node.attributes.get_ints("axes", None)
    return None if ints is None else [int(a) for a in ints]
