"""The graph of draft heads as their formula says it: one head after another, nothing batched."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.facts import DraftHeadFacts, decoder_facts, write_facts
from graftline.models.heads.head import Head
from graftline.models.heads.medusa import MedusaSettings
from graftline.owners import HEAD
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.draft_heads import POSTNORM
from graftline.passes.grafts.head_parts import Linear, layer_role, score_role
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import lazy, tensor_of
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import Port, write_ports
from graftline.raw_ports import write_raw
from graftline.roles import HEADS_LOGITS
from graftline.tensors import Widened

FLOAT = ir.DataType.FLOAT
WRITTEN = "head"
"""What made the nodes of such a graph."""
_LAYER = """
    product = MatMul (state, Transpose <perm = [1, 0]> (weight))
    linear = Add (product, bias)
    after = Add (state, Mul (linear, Sigmoid (linear)))
"""


def head_graph(head: Head, canonical: ir.Model) -> ir.Model:
    """hidden [B, N, H] -> heads.logits [B, N, heads, V]: h + SiLU(linear(h)) in every layer, then a
    head's own matrix, or the lm_head of its host `canonical`, whose tensors it takes unread.

    Raises CheckpointError for heads of another family, and for a host whose lm_head is no product.
    """
    sizes = head.settings
    if not isinstance(sizes, MedusaSettings):
        raise CheckpointError(
            f"{head.source}: a head of the family '{head.family}', which this version reads and "
            "does not build yet; give a Medusa head"
        )
    graph = ir.Graph([], [], nodes=[], name="draft-heads", opset_imports={"": 24})
    hidden = new_input(graph, "hidden", FLOAT, ["B", "N", sizes.hidden])
    emit, scores = Emit(graph, WRITTEN), list[ir.Value]()
    shared = _shared(emit, canonical) if sizes.shared else None
    vocabulary = sizes.vocabulary or decoder_facts(canonical).vocabulary
    for number in range(sizes.heads):
        state = hidden
        for layer in range(sizes.layers):
            state = _layer(emit, head, number, layer, state)
        scores.append(_scored(emit, head, number, state, shared))
    logits = emit.op("Concat", [_apart(emit, value) for value in scores], axis=2)
    shape = ("B", "N", sizes.heads, vocabulary)
    new_output(graph, logits, HEADS_LOGITS, FLOAT, shape)
    model = ir.Model(graph, ir_version=11)
    state = ("B", "N", sizes.hidden)
    ports = [
        Port("hidden", "hidden", "in", "float32", state, tap=POSTNORM, owner=HEAD),
        Port(HEADS_LOGITS, HEADS_LOGITS, "out", "float32", shape, owner=HEAD),
    ]
    write_ports(model, ports)
    write_raw(model, ports)
    count = sum(math.prod(tensor.shape.numpy()) for tensor in head.tensors.values())
    write_facts(model, DraftHeadFacts(
        sizes.hidden, vocabulary, sizes.heads, sizes.layers, sizes.shared,
        source=head.source.name, parameters=count,
    ))  # fmt: skip
    return model


def _layer(emit: Emit, head: Head, number: int, layer: int, state: ir.Value) -> ir.Value:
    weight, bias = (
        _tensor(emit, head, f"head.{number}.layer.{layer}.{part}") for part in ("weight", "bias")
    )
    given = {"state": state, "weight": weight, "bias": bias}
    product, after = write(emit, _LAYER, given, ["product", "after"])
    return _stamped(product, layer_role(number, layer)) and after


def _scored(
    emit: Emit, head: Head, number: int, state: ir.Value, shared: tuple[ir.Value, ...] | None
) -> ir.Value:
    if shared is None:
        weight = _tensor(emit, head, f"head.{number}.lm_head.weight")
        shared = (emit.op("Transpose", [weight], perm=[1, 0]),)
    product = _stamped(emit.op("MatMul", [state, shared[0]]), score_role(number))
    return emit.op("Add", [product, shared[1]]) if len(shared) > 1 else product


def _shared(emit: Emit, canonical: ir.Model) -> tuple[ir.Value, ...]:
    """The host's own lm_head [H, V], and its bias where it has one."""
    (node,) = with_role(canonical.graph, "lm_head")
    linear = Linear.of(node)
    values = (v for v in (linear.weight.stored, linear.bias) if v is not None)
    weight, *bias = (_widened(emit, value) for value in values)
    if linear.weight.turned:
        weight = emit.op("Transpose", [weight], perm=[1, 0])
    return weight, *bias


def _widened(emit: Emit, value: ir.Value) -> ir.Value:
    """An initializer of the host's, in fp32."""
    tensor, name = value.const_value, f"target.{value.name}"
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype != FLOAT:
        tensor = Widened(tensor, FLOAT, name)
    elif tensor.dtype != FLOAT:
        shape = tensor.shape.numpy()
        tensor = lazy(lambda: tensor_of(value).numpy().astype(np.float32), FLOAT, shape, name)
    return emit.initializer(name, tensor)


def _tensor(emit: Emit, head: Head, name: str) -> ir.Value:
    return emit.initializer(name, head.tensors[name])


def _apart(emit: Emit, logits: ir.Value) -> ir.Value:
    return write(emit, "one = Unsqueeze (logits, axis_2)", {"logits": logits}, ["one"])[0]


def _stamped(product: ir.Value, role: str) -> ir.Value:
    node = product.producer()
    assert node is not None
    node.metadata_props[ROLE] = role
    return product
