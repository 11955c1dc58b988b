"""Loops of a known number of rounds, written out.

TensorRT-RTX 1.7 takes a Loop by itself, and ends with a segmentation fault where one reads a value
that the step's forward pass has made (a drafted tree does).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.emit import Emit, take_place


def unroll(graph: ir.Graph, by: str) -> None:
    """Every Loop of the graph as copies of its body. Raises NotApplicable where the number of
    rounds is no constant, or a round does more than hand values to the next."""
    for loop in [n for n in graph if n.op_type == "Loop"]:
        body = loop.attributes["body"].as_graph()
        carried = list(loop.inputs[2:])
        rounds = _number(loop.inputs[0])
        nested = any(a.type == ir.AttributeType.GRAPH for n in body for a in n.attributes.values())
        if not rounds or nested or len(body.outputs) != len(carried) + 1:
            raise NotApplicable(
                "lower-tensorrt unrolls only a Loop with a constant number of rounds, without scan "
                "outputs and without another Loop or If inside",
                [loop.name or loop.op_type],
            )
        for r in range(rounds):
            emit = Emit(graph, by, loop)
            carried = _round(emit, body, r, [loop.inputs[1], *carried])
        take_place(loop, carried)


def _round(
    emit: Emit, body: ir.Graph, number: int, given: list[ir.Value | None]
) -> list[ir.Value | None]:
    """One copy of the body; what it hands to the next round."""
    index = emit.const(f"round.{number}", number, np.int64)
    known: dict[ir.Value | None, ir.Value | None] = dict(
        zip(body.inputs, [index, *given], strict=True)
    )
    for node in body:
        inputs = [known.get(v, v) for v in node.inputs]
        copy = emit.node(node.op_type, inputs, [""] * len(node.outputs), node.domain)
        for attribute in node.attributes.values():
            copy.attributes[attribute.name] = attribute
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.shape, new.type = old.shape, old.type
            known[old] = new
    return [known.get(v, v) for v in body.outputs[1:]]


def _number(value: ir.Value | None) -> int | None:
    """A constant whole number."""
    node = value.producer() if value is not None else None
    if value is not None and value.const_value is not None:
        return int(value.const_value.numpy())
    if node is None or node.op_type != "Constant":
        return None
    attribute = node.attributes.get("value_int") or node.attributes.get("value")
    if attribute is None:
        return None
    whole = attribute.type == ir.AttributeType.INT
    return attribute.as_int() if whole else int(attribute.as_tensor().numpy())
