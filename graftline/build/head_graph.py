"""The graphs of draft heads as their formula says it: one after another, nothing batched."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.facts import DraftHeadFacts, decoder_facts, write_facts
from graftline.head_notes import MARKOV
from graftline.models.heads.head import FINAL, Head
from graftline.models.heads.hydra import HydraSettings, is_prefixed
from graftline.models.heads.medusa import MedusaSettings
from graftline.owners import HEAD, head_owner
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.draft_heads import POSTNORM
from graftline.passes.grafts.head_parts import RESIDUAL, TABLE, Linear, layer_role, score_role
from graftline.passes.grafts.markov_walk import chained
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import constant, lazy, matrix, tensor_of
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import Port, write_ports
from graftline.raw_ports import write_raw
from graftline.roles import HEADS_LOGITS, LAST
from graftline.tensors import Widened

FLOAT = ir.DataType.FLOAT
PRENORM = "prenorm"
"""The tap of heads that read what leaves a block, be it a layer of their own."""
WRITTEN = "head"
"""What made the nodes of such a graph."""
_LINEAR = """
    product = MatMul (state, Transpose <perm = [1, 0]> (weight))
    linear = Add (product, bias)
"""
_ACTED = f"""{_LINEAR}
    acted = Mul (linear, Sigmoid (linear))
"""
_READ = """
    known = Gather (table, tokens)
    x = Concat <axis = -1> (hidden, Reshape (known, joined))
"""
"""[B, N, H (1 + T)]: a state, and the embeddings of the tokens behind it."""


def head_graphs(head: Head, canonical: ir.Model) -> list[ir.Model]:
    """The graphs of a head, over tensors of its files and of its host `canonical`, all unread: one
    of all heads that read nothing but a state, or one of each that also reads tokens.

    Raises CheckpointError where the host does not give what they read.
    """
    sizes = head.settings
    if isinstance(sizes, HydraSettings) and sizes.grounded:
        models = [_sequential(head, sizes, number, canonical) for number in range(sizes.heads)]
    else:
        models = [_parallel(head, sizes, canonical)]
    if head.taps != (FINAL,) and not is_prefixed(head):
        reading = head.reading(decoder_facts(canonical).layers, sizes.hidden)
        for model in models:
            reading.write(model)
    return models


def _parallel(
    head: Head, sizes: MedusaSettings | HydraSettings, canonical: ir.Model
) -> ir.Model:
    """hidden [B, N, H] -> heads.logits [B, N, heads, V]: h + SiLU(linear(h)) in every layer, then a
    head's own matrix, or the host's lm_head; with bigrams also last [B, N]."""
    emit, hidden = _begun(sizes.hidden)
    shares = isinstance(sizes, MedusaSettings) and sizes.shared
    shared = _shared(emit, head, canonical) if shares else None
    vocabulary, scores = sizes.vocabulary or decoder_facts(canonical).vocabulary, list[ir.Value]()
    for number in range(sizes.heads):
        state = hidden
        for layer in range(sizes.layers):
            state = _layer(emit, head, f"head.{number}.layer.{layer}", (number, layer), state)
        scores.append(_scored(emit, head, number, number, state, shared))
    ports, rank = _state_port(head, sizes.hidden, HEAD), 0
    if isinstance(sizes, MedusaSettings) and sizes.markov:
        rank = sizes.markov
        last = new_input(emit.graph, LAST, ir.DataType.INT64, ["B", "N"])
        ports = [*ports, Port(LAST, LAST, "in", "int64", ("B", "N"), owner=HEAD)]
        w1, w2 = (_tensor(emit, head, f"{MARKOV}{own}") for own in ("w1", "w2"))
        scores = chained(emit, scores, last, w1, w2)
    logits = emit.op("Concat", [_apart(emit, value) for value in scores], axis=2)
    facts = DraftHeadFacts(
        sizes.hidden, vocabulary, sizes.heads, sizes.layers, shares, markov=rank,
        source=head.source.name,
    )  # fmt: skip
    return _model(emit, facts, HEAD, logits, ports)


def _sequential(head: Head, sizes: HydraSettings, number: int, canonical: ir.Model) -> ir.Model:
    """hidden [B, N, H], tokens [B, N, number + 1] -> heads.logits [B, N, 1, V]."""
    emit, hidden = _begun(sizes.hidden)
    count, vocabulary = number + 1, sizes.vocabulary
    assert vocabulary is not None, "such heads have an lm_head each"
    tokens = new_input(emit.graph, "tokens", ir.DataType.INT64, ["B", "N", count])
    given = {
        "hidden": hidden, "tokens": tokens, "table": _table(emit, head, canonical),
        "joined": emit.const("head.joined", [0, 0, count * sizes.hidden], np.int64),
    }  # fmt: skip
    known, x = write(emit, _READ, given, ["known", "x"])
    _stamped(known, TABLE)
    part = f"head.{number}"
    first = {"state": x, **_pair(emit, head, f"{part}.layer.0")}
    product, acted = write(emit, _ACTED, first, ["product", "acted"])
    _stamped(product, layer_role(0, 0))
    beside = {"state": x, **_pair(emit, head, f"{part}.residual")}
    product, linear = write(emit, _LINEAR, beside, ["product", "linear"])
    _stamped(product, RESIDUAL)
    state = emit.op("Add", [linear, acted])
    for layer in range(1, sizes.layers):
        state = _layer(emit, head, f"{part}.layer.{layer}", (0, layer), state)
    logits = _apart(emit, _scored(emit, head, number, 0, state, None))
    facts = DraftHeadFacts(
        sizes.hidden, vocabulary, 1, sizes.layers, False, count, source=head.source.name
    )
    owner = head_owner(number)
    port = Port("tokens", "tokens", "in", "int64", ("B", "N", count), owner=owner)
    return _model(emit, facts, owner, logits, [*_state_port(head, sizes.hidden, owner), port])


def _state_port(head: Head, hidden: int, owner: str) -> list[Port]:
    """The input of the state that heads read."""
    (tap,) = head.taps
    kind = POSTNORM if tap.normed and not is_prefixed(head) else PRENORM
    shape = ("B", "N", hidden)
    return [Port("hidden", "hidden", "in", "float32", shape, tap=kind, owner=owner)]


def _begun(hidden: int) -> tuple[Emit, ir.Value]:
    graph = ir.Graph([], [], nodes=[], name="draft-heads", opset_imports={"": 24})
    return Emit(graph, WRITTEN), new_input(graph, "hidden", FLOAT, ["B", "N", hidden])


def _model(
    emit: Emit, facts: DraftHeadFacts, owner: str, logits: ir.Value, inputs: list[Port]
) -> ir.Model:
    """The finished graph of these logits."""
    shape = ("B", "N", facts.heads, facts.vocabulary)
    new_output(emit.graph, logits, HEADS_LOGITS, FLOAT, shape)
    out = Port(HEADS_LOGITS, HEADS_LOGITS, "out", "float32", shape, owner=owner)
    ports = [*inputs, out]
    model = ir.Model(emit.graph, ir_version=11)
    write_ports(model, ports)
    write_raw(model, ports)
    named = ("head.", MARKOV)
    own = (v.const_value for n, v in emit.graph.initializers.items() if n.startswith(named))
    count = sum(math.prod(tensor.shape.numpy()) for tensor in own if tensor is not None)
    write_facts(model, replace(facts, parameters=count))
    return model


def _layer(
    emit: Emit, head: Head, name: str, place: tuple[int, int], state: ir.Value
) -> ir.Value:
    """h + SiLU(linear(h)); `place` is its head and layer in the graph."""
    given = {"state": state, **_pair(emit, head, name)}
    product, acted = write(emit, _ACTED, given, ["product", "acted"])
    _stamped(product, layer_role(*place))
    return emit.op("Add", [state, acted])


def _pair(emit: Emit, head: Head, name: str) -> dict[str, ir.Value]:
    return {part: _tensor(emit, head, f"{name}.{part}") for part in ("weight", "bias")}


def _scored(
    emit: Emit,
    head: Head,
    number: int,
    place: int,
    state: ir.Value,
    shared: tuple[ir.Value, ...] | None,
) -> ir.Value:
    """[B, N, V]: by the head's own matrix, and its bias where it has one, or by the host's."""
    if shared is None:
        name = f"head.{number}.lm_head"
        weight = _tensor(emit, head, f"{name}.weight")
        shared = (emit.op("Transpose", [weight], perm=[1, 0]),)
        if f"{name}.bias" in head.tensors:
            shared = (*shared, _tensor(emit, head, f"{name}.bias"))
    product = _stamped(emit.op("MatMul", [state, shared[0]]), score_role(place))
    return emit.op("Add", [product, shared[1]]) if len(shared) > 1 else product


def _shared(emit: Emit, head: Head, canonical: ir.Model) -> tuple[ir.Value, ...]:
    """The host's own lm_head [H, V], and its bias where it has one."""
    (node,) = with_role(canonical.graph, "lm_head")
    if node.op_type != "MatMul" or matrix(node.inputs[1]) is None:
        raise CheckpointError(
            f"{head.source}: the heads share the host's lm_head, which is no product by one matrix "
            f"here ({node.op_type}); give heads with matrices of their own"
        )
    linear = Linear.of(node)
    values = (v for v in (linear.weight.stored, linear.bias) if v is not None)
    weight, *bias = (_widened(emit, value) for value in values)
    if linear.weight.turned:
        weight = emit.op("Transpose", [weight], perm=[1, 0])
    return weight, *bias


def _table(emit: Emit, head: Head, canonical: ir.Model) -> ir.Value:
    """The host's embedding [V, H]: what its tokens are looked up in."""
    (node,) = with_role(canonical.graph, "embedding")
    stored, users = constant(node.inputs[0]), node.outputs[0].consumers()
    if stored is None or any(user.op_type in ("Mul", "Div") for user in users):
        raise CheckpointError(
            f"{head.source}: the head reads the embeddings of drafted tokens, and this host scales "
            "its own: which of both such heads read is not known"
        )
    return _widened(emit, stored)


def _widened(emit: Emit, value: ir.Value) -> ir.Value:
    """An initializer of the host's, in fp32."""
    name = f"target.{value.name}"
    return emit.initializer(name, widened(tensor_of(value), name))


def widened(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor in fp32, unread."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype != FLOAT:
        return Widened(tensor, FLOAT, name)
    if tensor.dtype != FLOAT:
        shape = tensor.shape.numpy()
        return lazy(lambda: tensor.numpy().astype(np.float32), FLOAT, shape, name)
    return tensor


def _tensor(emit: Emit, head: Head, name: str) -> ir.Value:
    return emit.initializer(name, head.tensors[name])


def _apart(emit: Emit, logits: ir.Value) -> ir.Value:
    return write(emit, "one = Unsqueeze (logits, axis_2)", {"logits": logits}, ["one"])[0]


def _stamped(product: ir.Value, role: str) -> ir.Value:
    node = product.producer()
    assert node is not None
    node.metadata_props[ROLE] = role
    return product
