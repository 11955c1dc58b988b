"""Work on flattened rows [B*N, K] (Gemm, activations, residuals), brought back to [B, N, K].

Some exporters flatten the batch for every linear layer. Row-wise nodes do not care: each gets a
twin over [B, N, K], Gemm becomes MatMul and Add with the same weight, and only what needs rows,
such as a router of experts, still reads them flat.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.mismatch import Mismatch

_ROWWISE = frozenset(
    [
        "Relu",
        "Gelu",
        "Tanh",
        "Sigmoid",
        "Erf",
        "Neg",
        "Sqrt",
        "Exp",
        "Softplus",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Mish",
        "Swish",
        "Identity",
        "Cast",
        "Add",
        "Mul",
        "Sub",
        "Div",
        "Pow",
        "Clip",
        "LayerNormalization",
        "RMSNormalization",
    ]
)

_NOT_ROWWISE = {
    "Gemm": "scales its product or its bias, or transposes its rows",
    "MatMul": "multiplies rows by what is no weight",
}


def unflatten_rows(
    graph: ir.Graph, measures: Measures, hidden: set[ir.Value]
) -> list[Mismatch]:
    """Rewrite row-wise nodes over [B*N, K] to [B, N, K]; why others that make flat rows are not.
    Weights are neither read nor copied."""
    rows: dict[ir.Value, ir.Value] = {}
    left: list[Mismatch] = []
    for node in list(graph):
        out = node.outputs[0]
        if node.op_type in ("Reshape", "Flatten") and node.inputs[0] in hidden:
            twin = _reshaped(graph, node, rows, measures)
        else:
            twin = _twin(graph, node, rows, measures, hidden)
        if isinstance(twin, Mismatch):
            left += [twin] if out in hidden and _is_flat(out, measures) else []
            continue
        if _is_flat(out, measures):
            rows[out] = twin
        else:
            ir.convenience.replace_all_uses_with(out, twin, replace_graph_outputs=True)
    for flat, twin in rows.items():
        _serve_flat(graph, flat, twin, measures)
    return left


def _is_flat(value: ir.Value, measures: Measures) -> bool:
    dims = measures.dims(value)
    return dims is not None and len(dims) == 2 and dims[0] == "B*N" and isinstance(dims[1], int)


def _reshaped(
    graph: ir.Graph, node: ir.Node, rows: dict[ir.Value, ir.Value], measures: Measures
) -> ir.Value | Mismatch:
    """[B, N, ...] for a reshape out of, or into, flat rows."""
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    dims = measures.dims(out)
    if source in rows and dims is not None and dims[:2] == ["B", "N"]:
        rest = [d for d in dims[2:] if isinstance(d, int)]
        width = measures.shape(source)[-1]
        return rows[source] if rest == [width] else _to(graph, node, rows[source], rest)
    before = measures.dims(source)
    if before is None or before[:2] != ["B", "N"] or not _is_flat(out, measures):
        return Mismatch.at(node, f"makes {dims} of {before}")
    width = measures.shape(out)[-1]
    return source if before[2:] == [width] else _to(graph, node, source, [width])


def _to(graph: ir.Graph, at: ir.Node, source: ir.Value, rest: list[int]) -> ir.Value:
    emit, target = Emit(graph, "canonicalize", at=at), [0, 0, *rest]
    held = emit.const("shape." + "_".join(map(str, target)), target, np.int64)
    new = emit.op("Reshape", [source, held])
    new.type = source.type
    return new


def _twin(
    graph: ir.Graph, node: ir.Node, rows: dict[ir.Value, ir.Value], measures: Measures,
    hidden: set[ir.Value],
) -> ir.Value | Mismatch:  # fmt: skip
    """The same row-wise node over [B, N, K]."""
    acts = [v for v in node.inputs if v is not None and v in hidden]
    if not acts or not all(v in rows for v in acts):
        return Mismatch.at(node, "reads other activations than flat rows")
    if len(node.outputs) != 1 or node.domain:
        return Mismatch.at(node, "is not known to compute each row by itself")
    emit = Emit(graph, "canonicalize", at=node)
    if node.op_type == "Gemm" and _is_plain(node) and acts == [node.inputs[0]]:
        return _linear(emit, node, rows[acts[0]])
    if node.op_type == "MatMul" and acts == [node.inputs[0]]:
        new = emit.op("MatMul", [rows[acts[0]], node.inputs[1]])
    elif node.op_type in _ROWWISE and _others_are_vectors(node, acts, measures):
        inputs = [rows[v] if v is not None and v in rows else v for v in node.inputs]
        new = emit.op(node.op_type, inputs, **{k: a.value for k, a in node.attributes.items()})
    else:
        return Mismatch.at(node, _NOT_ROWWISE.get(node.op_type, "is not known to be row-wise"))
    new.type = node.outputs[0].type
    return new


def _others_are_vectors(node: ir.Node, acts: list[ir.Value], measures: Measures) -> bool:
    for value in node.inputs:
        if value is None or value in acts:
            continue
        shape = measures.each[0].of(value)
        if shape is None or len(shape) > 1:
            return False
    axis = node.attributes.get_int("axis", -1)
    return not node.op_type.endswith("Normalization") or axis == -1


def _is_plain(node: ir.Node) -> bool:
    return (
        node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
        and not node.attributes.get_int("transA", 0)
    )


def _linear(emit: Emit, node: ir.Node, x: ir.Value) -> ir.Value:
    weight = node.inputs[1]
    if node.attributes.get_int("transB", 0) and weight is not None:
        turned = emit.op("Transpose", [weight], perm=[1, 0])
        turned.type = weight.type
        weight = turned
    y = emit.op("MatMul", [x, weight])
    y.type = node.outputs[0].type
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        y = emit.op("Add", [y, bias])
        y.type = node.outputs[0].type
    return y


def _serve_flat(graph: ir.Graph, flat: ir.Value, twin: ir.Value, measures: Measures) -> None:
    """Give readers that need flat rows a reshape of the twin, unless the value is one already."""
    node = flat.producer()
    if node is None or node.op_type in ("Reshape", "Flatten"):
        return
    emit = Emit(graph, "canonicalize", at=node)
    width = measures.shape(flat)[-1]
    new = emit.op("Reshape", [twin, emit.const(f"shape.-1_{width}", [-1, width], np.int64)])
    new.type = flat.type
    ir.convenience.replace_all_uses_with(flat, new, replace_graph_outputs=True)
