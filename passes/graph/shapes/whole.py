"""Types and shapes of a whole graph by ONNX's own inference.

What onnx_ir offers reads the whole inferred model back, nodes and all, to copy its types: that was
half of the time. Here nodes go over without metadata, and types alone come back, of values that
have another than before.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from graftline.bare import bare, describe_values

SMALL = 1000
"""Bytes of a weight that is inferred with: those of shapes and axes."""
NOTHING: Mapping[str, onnx.TypeProto] = {}


def infer(model: ir.Model, *, strict: bool) -> str:
    """Types and shapes of all values, in place; what ONNX says where it cannot tell them, the model
    left as it is.

    Weights are neither read nor copied. `strict`: types and shapes that contradict each other are
    an error, and sizes are followed through shape arithmetic.
    """
    for value in model.graph.initializers.values():
        _as_its_tensor(value)
    try:
        proto = bare(model, SMALL)
        describe_values(model.graph, proto.graph)
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=strict, strict_mode=strict, data_prop=strict
        )
    except (onnx.shape_inference.InferenceError, ir.serde.SerdeError) as error:
        return " ".join(str(error).split())[:400] or type(error).__name__
    known = {info.name: info.type for info in (*proto.graph.value_info, *proto.graph.output)}
    _merge(model.graph, inferred.graph, known)
    return ""


def _as_its_tensor(value: ir.Value) -> None:
    if (tensor := value.const_value) is not None:
        if value.shape is None:
            value.shape = ir.Shape(tensor.shape.numpy())
        if value.dtype is None:
            value.dtype = tensor.dtype


def _merge(
    graph: ir.Graph, proto: onnx.GraphProto, known: Mapping[str, onnx.TypeProto] = NOTHING
) -> None:
    """Take what was inferred, but for what is `known` to be as inferred."""
    told = {
        info.name: info.type
        for info in (*proto.value_info, *proto.output)
        if known.get(info.name) != info.type
    }
    for node, inferred in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name in told:
                _take(value, told[value.name])
        for name, attribute in node.attributes.items():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                part = next(held for held in inferred.attribute if held.name == name)
                _merge_parts(attribute, part)


def _merge_parts(attribute: ir.Attr, proto: onnx.AttributeProto) -> None:
    if attribute.type is ir.AttributeType.GRAPH:
        _merge(attribute.as_graph(), proto.g)
    else:
        for part, held in zip(attribute.as_graphs(), proto.graphs, strict=True):
            _merge(part, held)


def _take(value: ir.Value, told: onnx.TypeProto) -> None:
    shape = ir.serde.deserialize_type_proto_for_shape(told)
    if shape is not None and value.shape != shape:
        value.shape = shape
    kind = ir.serde.deserialize_type_proto_for_type(told)
    if kind is not None and value.dtype != kind.dtype:
        value.type = kind
