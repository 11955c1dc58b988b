"""The nodes around a value."""

from __future__ import annotations

import onnx_ir as ir

from graftline.passes.graph.meaning import scalar


def producer(value: ir.Value | None) -> ir.Node | None:
    """What makes a value; None for an input, an initializer, or no value."""
    return value.producer() if value is not None else None


def reader(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """A node of one of these types that reads a value."""
    if value is None:
        return None
    return next((n for n, _ in value.uses() if n.op_type in op_types), None)


def single(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only reader of a value, when it is of that type."""
    readers = list(value.uses())
    if len(readers) != 1 or readers[0][0].op_type != op_type or value.is_graph_output():
        return None
    return readers[0][0]


def constant_operand(node: ir.Node | None, other: ir.Value) -> float | None:
    """The number beside `other` in an operator of two; None where it is none."""
    if node is None:
        return None
    return scalar(node.inputs[1] if node.inputs[0] is other else node.inputs[0])
