"""Every normalisation of a graph as one node of ONNX's, its weights as the checkpoint has them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.passes.canonical.norms.find import Norm, before_cast, centred_source, find_norm
from graftline.passes.canonical.norms.operators import refuse_axis
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import sizes_of
from graftline.passes.graph.neighbours import producer

_MAKER = "canonicalize"


def fuse_norms(model: ir.Model) -> None:
    """Replace every decomposed normalisation over the last axis."""
    graph = model.graph
    for node in list(graph):
        found = find_norm(node)
        if isinstance(found, Norm):
            _replace(graph, found)
    for node in list(graph):
        if node.op_type in ("RMSNormalization", "LayerNormalization"):
            refuse_axis(node)
        if node.op_type == "RMSNormalization":
            _narrow_scale(graph, node)
            _centre(graph, node)


def _narrow_scale(graph: ir.Graph, node: ir.Node) -> None:
    """A vector for a scale of one number in the whole shape of x, as torch writes norms without."""
    x, scale = node.inputs[0], node.inputs[1]
    filled = producer(scale)
    width = x.shape[-1] if x is not None and x.shape is not None else None
    if filled is None or filled.op_type != "ConstantOfShape" or not isinstance(width, int):
        return
    value = filled.attributes.get("value")
    number = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    name = f"norm.{width}.filled_{float(number[0]):g}"
    held = Emit(graph, _MAKER, at=node).const(name, np.repeat(number, width), number.dtype)
    node.replace_input_with(1, held)


def _typed(emit: Emit, vector: ir.Value, x: ir.Value) -> ir.Value:
    """The vector in the type of `x`: a checkpoint may store it narrower than it is used."""
    tensor = vector.const_value
    if tensor is None or x.dtype is None or tensor.dtype == x.dtype:
        return vector
    made = emit.op("Cast", [vector], to=x.dtype)
    made.type, made.shape = ir.TensorType(x.dtype), vector.shape
    return made


def _replace(graph: ir.Graph, norm: Norm) -> None:
    node = norm.out.producer()
    if node is None:
        return
    emit = Emit(graph, _MAKER, at=node)
    scale = _typed(emit, norm.scale, norm.x) if norm.scale is not None else None
    if norm.plus_one is not None:
        scale = _plus_one(emit, norm.plus_one, norm.x.dtype)
    if scale is None:
        scale = _ones(emit, norm.x)
    if scale is None:
        return
    inputs = [norm.x, scale]
    if norm.bias is not None:
        inputs.append(_typed(emit, norm.bias, norm.x))
    new = emit.op(
        "LayerNormalization" if norm.centred else "RMSNormalization", inputs,
        axis=-1, epsilon=norm.epsilon, stash_type=1,
    )  # fmt: skip
    new.shape, new.type = norm.out.shape, norm.out.type
    ir.convenience.replace_all_uses_with(norm.out, new, replace_graph_outputs=True)


def _plus_one(emit: Emit, vector: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """1 + w in the type it is used in, as a lazy tensor: read only when the graph is written or
    run."""
    name, tensor = f"{vector.name}.plus_one", vector.const_value
    if name in emit.graph.initializers:
        return emit.graph.initializers[name]
    if tensor is None:
        raise AssertionError(f"{vector.name} is no initializer")

    used = dtype or tensor.dtype

    def add_one() -> ir.TensorProtocol:
        total = tensor.numpy().astype(np.float32) + np.float32(1)
        return ir.tensor(total.astype(used.numpy()), dtype=used, name=name)

    lazy = ir.LazyTensor(add_one, dtype=used, shape=ir.Shape(sizes_of(tensor)), name=name)
    return emit.initializer(name, lazy)


def _ones(emit: Emit, x: ir.Value) -> ir.Value | None:
    width = x.shape[-1] if x.shape is not None and len(x.shape) else None
    if not isinstance(width, int):
        return None
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    return emit.const(f"ones.{width}", np.ones(width), dtype)


def _centre(graph: ir.Graph, node: ir.Node) -> None:
    """RMSNormalization of x - mean(x), as exporters' rules leave it, is LayerNormalization."""
    x, scale = node.inputs[0], node.inputs[1]
    if x is None or scale is None or node.attributes.get_int("axis", -1) != -1:
        return
    source, centred = centred_source(x)
    if not centred:
        return
    out = node.outputs[0]
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
    _replace(graph, Norm(before_cast(source), out, epsilon, True, scale))


