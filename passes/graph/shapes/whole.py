"""Types and shapes of a whole graph by ONNX's own inference.

What onnx_ir offers reads the whole inferred model back, nodes and all, to copy its types: that was
half of the time. Here nodes go over without metadata, and types alone come back.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

SMALL = 1000
"""Bytes of a weight that is inferred with: those of shapes and axes."""


def infer(model: ir.Model, *, strict: bool) -> str:
    """Types and shapes of all values, in place; what ONNX says where it cannot tell them, the model
    left as it is.

    Weights are neither read nor copied. `strict`: types and shapes that contradict each other are
    an error, and sizes are followed through shape arithmetic.
    """
    for value in model.graph.initializers.values():
        _as_its_tensor(value)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            _described(model), check_type=strict, strict_mode=strict, data_prop=strict
        )
    except (onnx.shape_inference.InferenceError, ir.serde.SerdeError) as error:
        return " ".join(str(error).split())[:400] or type(error).__name__
    _merge(model.graph, inferred.graph)
    return ""


def _as_its_tensor(value: ir.Value) -> None:
    if (tensor := value.const_value) is not None:
        if value.shape is None:
            value.shape = ir.Shape(tensor.shape.numpy())
        if value.dtype is None:
            value.dtype = tensor.dtype


def _described(model: ir.Model) -> onnx.ModelProto:
    """The model, its weights as inputs without values unless they are SMALL."""
    graph = model.graph
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.graph.name = graph.name or ""
    inputs = set(graph.inputs)
    for value in graph.inputs:
        _describe(value, proto.graph.input.add())
    for value in graph.initializers.values():
        if value not in inputs:
            _describe(value, proto.graph.input.add())
        if (tensor := value.const_value) is not None and tensor.nbytes <= SMALL:
            held = proto.graph.initializer.add()
            ir.serde.serialize_tensor_into(held, tensor)
            held.name = value.name or ""
    for node in graph:
        _describe_node(node, proto.graph.node.add())
    for value in graph.outputs:
        _describe(value, proto.graph.output.add())
    for value in _made(graph):
        if value.name and value.type is not None and not value.is_graph_output():
            _describe(value, proto.graph.value_info.add())
    proto.functions.extend(ir.serde.serialize_function(f) for f in model.functions.values())
    return proto


def _made(graph: ir.Graph) -> Iterable[ir.Value]:
    return (value for node in graph for value in node.outputs)


def _describe(value: ir.Value, proto: onnx.ValueInfoProto) -> None:
    proto.name = value.name or ""
    if value.type is not None:
        ir.serde.serialize_type_into(proto.type, value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(proto.type, value.shape)


def _describe_node(node: ir.Node, proto: onnx.NodeProto) -> None:
    proto.name, proto.op_type, proto.domain = node.name or "", node.op_type, node.domain
    proto.overload = node.overload
    proto.input.extend("" if value is None else value.name or "" for value in node.inputs)
    proto.output.extend(value.name or "" for value in node.outputs)
    for attribute in node.attributes.values():
        told = proto.attribute.add()
        if attribute.is_ref():
            ir.serde.serialize_reference_attribute_into(told, attribute)
        else:
            ir.serde.serialize_attribute_into(told, attribute)


def _merge(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    told = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    for node, inferred in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name in told:
                _take(value, told[value.name])
        parts = {held.name: held for held in inferred.attribute}
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                _merge(attribute.as_graph(), parts[attribute.name].g)
            elif attribute.type is ir.AttributeType.GRAPHS:
                for part, held in zip(
                    attribute.as_graphs(), parts[attribute.name].graphs, strict=True
                ):
                    _merge(part, held)


def _take(value: ir.Value, told: onnx.TypeProto) -> None:
    shape = ir.serde.deserialize_type_proto_for_shape(told)
    if shape is not None and value.shape != shape:
        value.shape = shape
    kind = ir.serde.deserialize_type_proto_for_type(told)
    if kind is not None and value.dtype != kind.dtype:
        value.type = kind
