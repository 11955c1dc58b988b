"""Calls of graftline's own operators: a node, and its meaning as a function of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.passes.graph.emit import Emit
from graftline.passes.pipeline.graft import stamp
from graftline.plugins.spec import DOMAIN, Plugin, Value


def call(
    model: ir.Model, emit: Emit, plugin: Plugin, inputs: Sequence[ir.Value], **attributes: Value
) -> list[ir.Value]:
    """Write one node of the domain graftline and return its outputs, typed.

    The operator's function is added to the model, which therefore stays plain ONNX.
    """
    function = ir.from_proto(plugin.function())
    model.functions.setdefault(function.identifier(), function)
    model.opset_imports[DOMAIN] = 1
    given = plugin.values(attributes)
    names = [""] * len(plugin.outputs)
    node = emit.node(plugin.name, inputs, names, DOMAIN, **given)
    floats = {v.dtype for t, v in zip(plugin.inputs, inputs, strict=True) if t.type == "T"}
    for value, tensor in zip(node.outputs, plugin.outputs, strict=True):
        known = floats if tensor.type == "T" else {ir.DataType.from_numpy(np.dtype(tensor.type))}
        dtype = next(iter(known))
        assert dtype is not None, f"{plugin.name}: an input has no type"
        value.type = ir.TensorType(dtype)
    return list(node.outputs)


def calls(graph: ir.Graph, plugin: Plugin) -> list[ir.Node]:
    """The nodes that call an operator, in graph order."""
    return [n for n in graph if n.domain == DOMAIN and n.op_type == plugin.name]


def inline(model: ir.Model, by: str) -> None:
    """Put the functions in place of their calls, for backends without the operators.

    What the calls have in common (a step commits every cache by the same index) is computed once.
    """
    if not model.functions:
        return
    known = set(model.graph)
    common.InlinePass()(model)
    common.NameFixPass()(model)  # the inliner leaves the inputs of a loop's body as they were
    for node in model.graph:
        if node not in known:
            stamp(node, by)
    model.opset_imports.pop(DOMAIN, None)
    _share_extents(model.graph, by)
    common.CommonSubexpressionEliminationPass()(model)


def _share_extents(graph: ir.Graph, by: str) -> None:
    """One value per symbol: an extent that is a number is a constant, and B is read in one place.
    """
    emit, known = Emit(graph, by), dict[str, ir.Value]()
    for node in list(graph):
        dim = _extent(node)
        if isinstance(dim, int):
            known.setdefault(str(dim), emit.const(f"extent.{dim}", [dim], np.int64))
        if dim is not None:
            read = known.setdefault(str(dim), node.outputs[0])
            if read is not node.outputs[0]:
                node.outputs[0].replace_all_uses_with(read)
                graph.remove(node, safe=True)


def _extent(node: ir.Node) -> int | str | None:
    """The one dimension that a Shape node reads, or None where it reads more or is not known."""
    shape = node.inputs[0].shape if node.op_type == "Shape" and node.inputs[0] is not None else None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 0)
    if shape is None or end != start + 1:
        return None
    dim = shape[start]
    return dim if isinstance(dim, int) else dim.value
