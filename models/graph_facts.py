"""Facts read off a graph that comes without a config: 0 where the graph does not say."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from graftline.contrib_ops.operands import MICROSOFT
from graftline.facts import DecoderFacts, Facts
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.anchors.roles import OnePass

HEADS = ("q_num_heads", "num_heads")
ATTENTION = ("Attention", "GroupQueryAttention", "MultiHeadAttention")
KV_HEADS = ("kv_num_heads",)
_ON_SCORES = frozenset({
    "Add", "Sub", "Mul", "Div", "Where", "Cast", "Tanh", "Max", "Clip", "Reshape", "Identity",
})  # fmt: skip
_TABLES = {
    ("RotaryEmbedding", ""): 1, ("RotaryEmbedding", MICROSOFT): 2,
    ("GroupQueryAttention", MICROSOFT): 7,
}  # fmt: skip
"""Where operators take their table of cosines, by name and domain."""


def facts_of_graph(model: ir.Model, source: str) -> Facts:
    """Facts of the kind of host that the graph's inputs and outputs show."""
    for find in ONE_PASS.values():
        if isinstance(found := find(model.graph), OnePass):
            return facts_of(model, found, source)
    return decoder_of(model, source)


def facts_of(model: ir.Model, found: OnePass, source: str) -> Facts:
    """Facts of a host that runs once, as it was found."""
    dtype = found.output.value.dtype
    assert dtype is not None
    of_all = {"dtype": dtype.numpy().name, "parameters": _parameters(model)}
    return replace(found.facts, source=source, **of_all)


def decoder_of(model: ir.Model, source: str) -> DecoderFacts:
    """Heads from attention nodes or past inputs, positions from tables of cosines.

    Vocabulary and hidden size are those of the logits and of the token table, which only the
    canonical form tells from other outputs and tables; what else the graph does not say is read
    off that form too.
    """
    layers, heads, kv_heads, size = _attention(model)
    past = _past(model)
    if past:
        layers = layers or past[0]
        kv_heads, size = past[1] or kv_heads, past[2] or size
    return DecoderFacts(
        vocabulary=0,
        hidden=0,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        positions=_positions(model),
        dtype=_dtype(model),
        source=source,
        parameters=_parameters(model),
    )


def _positions(model: ir.Model) -> int:
    """The rows of the shortest table of cosines that a node is given, 0 where none is."""
    rows = [
        _dim(node.inputs[_TABLES[node.op_type, node.domain]], 0)
        for node in model.graph.all_nodes()
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


def _attention(model: ir.Model) -> tuple[int, int, int, int]:
    """(layers, heads, KV heads, head size) by the graph's attention nodes, or its softmaxes over
    products of two activations; without shapes, the layers alone."""
    nodes = _most([n for n in model.graph.all_nodes() if n.op_type in ATTENTION])
    if not nodes:
        soft = _most([n for n in model.graph.all_nodes() if _weighs(n)])
        sizes = {_dim(n.inputs[0], 1) for n in soft if _rank(n.inputs[0]) == 4}
        return len(soft), sizes.pop() if len(sizes) == 1 else 0, 0, 0
    node = nodes[0]
    query, key = node.inputs[0], node.inputs[1]
    heads, kv_heads = _attribute(node, HEADS), _attribute(node, KV_HEADS)
    if _rank(query) == 4:
        return len(nodes), _dim(query, 1), _dim(key, 1), _dim(query, 3)
    width = _dim(query, 2) if key is not None else 0  # else queries, keys and values are one
    return len(nodes), heads, kv_heads or heads, width // heads if heads else 0


def _most(nodes: list[ir.Node]) -> list[ir.Node]:
    """Those of the one graph that has most of them: the branches of an `If` are one model each."""
    graphs = {id(n.graph): [m for m in nodes if m.graph is n.graph] for n in nodes}
    return max(graphs.values(), key=len, default=[])


def _weighs(node: ir.Node) -> bool:
    """Whether a softmax is that of an attention: of a product of two activations."""
    if node.op_type != "Softmax":
        return False
    value = node.inputs[0]
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type == "MatMul":
            return not any(_is_weight(v) for v in maker.inputs)
        if maker.op_type not in _ON_SCORES:
            return False
        rest = [v for v in maker.inputs if v is not None and not _is_weight(v)]
        value = next((v for v in rest if _reaches_product(v)), None)
    return False


def _reaches_product(value: ir.Value) -> bool:
    """Whether a product of matrices stands above a value of the scores."""
    todo, seen = [value], {value}
    while todo:
        maker = todo.pop().producer()
        if maker is None:
            continue
        if maker.op_type == "MatMul":
            return True
        if maker.op_type in _ON_SCORES:
            fresh = [v for v in maker.inputs if v is not None and v not in seen]
            seen.update(fresh)
            todo.extend(fresh)
    return False


def _is_weight(value: ir.Value | None) -> bool:
    while value is not None and value.const_value is None:
        maker = value.producer()
        if maker is None or maker.op_type not in ("Transpose", "Cast", "DequantizeLinear"):
            return maker is not None and maker.op_type == "Constant"
        value = maker.inputs[0]
    return value is not None


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _attribute(node: ir.Node, names: tuple[str, ...]) -> int:
    found = [node.attributes[n].as_int() for n in names if n in node.attributes]
    return found[0] if found else 0


def _past(model: ir.Model) -> tuple[int, int, int] | None:
    """(layers, KV heads, head size) of floating inputs [B, KV heads, past, head size] in pairs."""
    caches = [
        v
        for v in model.graph.inputs
        if _rank(v) == 4 and v.dtype is not None and v.dtype.is_floating_point()
        and _dim(v, 1) and _dim(v, 3) and not _dim(v, 2)
    ]  # fmt: skip
    if not caches or len(caches) % 2:
        return None
    return len(caches) // 2, _dim(caches[0], 1), _dim(caches[0], 3)


def _dtype(model: ir.Model) -> str:
    """The type of the activations: that of the tables, or of the outputs that are floats."""
    tables = [n.inputs[0] for n in model.graph.all_nodes() if n.op_type == "Gather" and n.inputs]
    kinds = [v.dtype for v in (*tables, *model.graph.outputs) if v is not None]
    found = [k for k in kinds if k is not None and k.is_floating_point()]
    return found[0].numpy().name if found else "float32"


def _parameters(model: ir.Model) -> int:
    """Elements of all matrices and vectors; packed integers are counted as they lie."""
    total = 0
    for value in model.graph.initializers.values():
        if value.shape is not None and math.prod(int(n) for n in value.shape) > 1:  # type: ignore[arg-type]
            total += math.prod(int(n) for n in value.shape)  # type: ignore[arg-type]
    return total
