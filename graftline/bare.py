"""A graph as ONNX's own message without what is large: weights are inputs, metadata is left out.

The oracle and shape inference read such messages after every pass. Copying the model to take its
weights out, and writing all that a file holds of it, took most of their time.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir


def bare(model: ir.Model, smallest: int = -1) -> onnx.ModelProto:
    """The nodes, the types of inputs and outputs, and the functions of `model`. Initializers are
    inputs behind the graph's own; of those of up to `smallest` bytes the values go along."""
    graph = model.graph
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.graph.name = graph.name or ""
    inputs = set(graph.inputs)
    for value in graph.inputs:
        describe(value, proto.graph.input.add())
    for value in graph.initializers.values():
        if value not in inputs:
            describe(value, proto.graph.input.add())
        if (tensor := value.const_value) is not None and tensor.nbytes <= smallest:
            held = proto.graph.initializer.add()
            ir.serde.serialize_tensor_into(held, tensor)
            held.name = value.name or ""
    for node in graph:
        _describe_node(node, proto.graph.node.add())
    for value in graph.outputs:
        describe(value, proto.graph.output.add())
    proto.functions.extend(ir.serde.serialize_function(f) for f in model.functions.values())
    return proto


def describe_values(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Write the types of what nodes make into the message of their graph."""
    for value in (made for node in graph for made in node.outputs):
        if value.name and value.type is not None and not value.is_graph_output():
            describe(value, proto.value_info.add())


def describe(value: ir.Value, proto: onnx.ValueInfoProto) -> None:
    """Write the name, type and shape of a value."""
    proto.name = value.name or ""
    kind = value.type
    if isinstance(kind, ir.TensorType):  # nearly all, and many: written here, not by onnx_ir
        proto.type.tensor_type.elem_type = kind.dtype.value
        if value.shape is not None:
            _describe_shape(value.shape, proto.type.tensor_type.shape)
    elif kind is not None:
        ir.serde.serialize_type_into(proto.type, kind)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto.type, value.shape)


def _describe_shape(dims: Iterable[int | ir.SymbolicDim], shape: onnx.TensorShapeProto) -> None:
    shape.SetInParent()  # a scalar's has no sizes, and is a shape
    for dim in dims:
        if isinstance(dim, int):
            shape.dim.add(dim_value=dim)
        elif dim.value is None:
            shape.dim.add()
        else:
            shape.dim.add(dim_param=str(dim.value))


def _describe_node(node: ir.Node, proto: onnx.NodeProto) -> None:
    proto.name, proto.op_type, proto.domain = node.name or "", node.op_type, node.domain
    proto.overload = node.overload
    proto.input.extend(["" if value is None else value.name or "" for value in node.inputs])
    proto.output.extend([value.name or "" for value in node.outputs])
    for attribute in node.attributes.values():
        told = proto.attribute.add()
        if attribute.is_ref():
            ir.serde.serialize_reference_attribute_into(told, attribute)
        else:
            ir.serde.serialize_attribute_into(told, attribute)
