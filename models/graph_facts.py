"""Facts read off a graph that comes without a config: 0 where the graph does not say."""

from __future__ import annotations

import math

import onnx_ir as ir

from graftline.contrib_ops import MICROSOFT
from graftline.ports import Facts

HEADS = ("q_num_heads", "num_heads")
ATTENTION = ("Attention", "GroupQueryAttention", "MultiHeadAttention")
KV_HEADS = ("kv_num_heads",)
_TABLES = {
    ("RotaryEmbedding", ""): 1, ("RotaryEmbedding", MICROSOFT): 2,
    ("GroupQueryAttention", MICROSOFT): 7,
}  # fmt: skip
"""Where operators take their table of cosines, by name and domain."""


def facts_of_graph(model: ir.Model, source: str) -> Facts:
    """Vocabulary and hidden size from the embedding, heads from attention nodes or past inputs."""
    hidden = _hidden(model)
    layers, heads, kv_heads, size = _attention(model)
    past = _past(model)
    if past:
        layers = layers or past[0]
        kv_heads, size = past[1] or kv_heads, past[2] or size
    heads = heads or (hidden // size if size else 0)
    return Facts(
        kind="decoder",
        vocabulary=_vocabulary(model),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_size=size or (hidden // heads if heads else 0),
        positions=_positions(model),
        dtype=_dtype(model),
        source=source,
        parameters=_parameters(model),
    )


def _positions(model: ir.Model) -> int:
    """The rows of the shortest table of cosines that a node is given, 0 where none is."""
    rows = [
        _dim(node.inputs[_TABLES[node.op_type, node.domain]], 0)
        for node in model.graph
        if (node.op_type, node.domain) in _TABLES
        and len(node.inputs) > _TABLES[node.op_type, node.domain]
    ]
    return min((r for r in rows if r), default=0)


def _dim(value: ir.Value | None, axis: int) -> int:
    """The size of an axis, 0 where it is symbolic or unknown."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return 0
    size = value.shape[axis]
    return size if isinstance(size, int) else 0


def _logits(model: ir.Model) -> ir.Value:
    named = [v for v in model.graph.outputs if v.name == "logits"]
    return (named or list(model.graph.outputs))[0]


def _vocabulary(model: ir.Model) -> int:
    return _dim(_logits(model), -1) or (_embedding(model) or (0, 0))[0]


def _hidden(model: ir.Model) -> int:
    return (_embedding(model) or (0, 0))[1]


def _embedding(model: ir.Model) -> tuple[int, int] | None:
    """[V, H] of the largest table that graph inputs index."""
    found: list[tuple[int, int]] = []
    for node in model.graph:
        table = node.inputs[0] if node.inputs else None
        if node.op_type != "Gather" or table is None or not table.is_initializer():
            continue
        if table.shape is not None and len(table.shape) == 2:
            found.append((_dim(table, 0), _dim(table, 1)))
    return max(found, default=None, key=lambda shape: shape[0] * shape[1])


def _attention(model: ir.Model) -> tuple[int, int, int, int]:
    """(layers, heads, KV heads, head size) by the graph's attention nodes, or its softmaxes."""
    nodes = [n for n in model.graph if n.op_type in ATTENTION]
    if not nodes:
        soft = [n for n in model.graph if n.op_type == "Softmax" and _rank(n.inputs[0]) == 4]
        return len(soft), _dim(soft[0].inputs[0], 1) if soft else 0, 0, 0
    node = nodes[0]
    query, key = node.inputs[0], node.inputs[1]
    heads, kv_heads = _attribute(node, HEADS), _attribute(node, KV_HEADS)
    if _rank(query) == 4:
        return len(nodes), _dim(query, 1), _dim(key, 1), _dim(query, 3)
    return len(nodes), heads, kv_heads or heads, _dim(query, 2) // heads if heads else 0


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _attribute(node: ir.Node, names: tuple[str, ...]) -> int:
    found = [node.attributes[n].as_int() for n in names if n in node.attributes]
    return found[0] if found else 0


def _past(model: ir.Model) -> tuple[int, int, int] | None:
    """(layers, KV heads, head size) of rank-4 floating inputs that come in pairs."""
    caches = [
        v
        for v in model.graph.inputs
        if _rank(v) == 4 and v.dtype is not None and v.dtype.is_floating_point()
    ]
    if not caches or len(caches) % 2:
        return None
    return len(caches) // 2, _dim(caches[0], 1), _dim(caches[0], 3)


def _dtype(model: ir.Model) -> str:
    kind = _logits(model).dtype
    return "float32" if kind is None or kind == ir.DataType.FLOAT else kind.name.lower()


def _parameters(model: ir.Model) -> int:
    """Elements of all matrices and vectors; packed integers are counted as they lie."""
    total = 0
    for value in model.graph.initializers.values():
        if value.shape is not None and math.prod(int(n) for n in value.shape) > 1:  # type: ignore[arg-type]
            total += math.prod(int(n) for n in value.shape)  # type: ignore[arg-type]
    return total
