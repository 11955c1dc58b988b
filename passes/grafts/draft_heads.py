"""draft-heads: parallel heads on the last hidden state, each scoring a token further ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.facts import DraftHeadFacts, read_facts
from graftline.head_notes import TapReading
from graftline.owners import HEAD
from graftline.passes.grafts.head_parts import (
    DRAFT_LAYER,
    DRAFT_SCORES,
    HEADS,
    HeadParts,
    Linear,
    SequentialHead,
    head_parts,
    stacked_bias,
)
from graftline.passes.grafts.markov_walk import chained
from graftline.passes.grafts.reduce_logits import Groups
from graftline.passes.graph.emit import Emit, drop_unused, free_name, new_output
from graftline.passes.graph.ports import input_of, output_of, value_of
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import lazy
from graftline.passes.laws.heads import head_formula
from graftline.passes.pipeline.graft import ROLE, Graft, Law
from graftline.ports import Port, by_role, read_ports, write_ports
from graftline.roles import HEADS_IDS, HEADS_LOGITS, HEADS_TOPK, LAST
from graftline.tensors import Stacked

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
POSTNORM = "postnorm"
"""The tap that Medusa's heads read: what the final norm gives."""

_ACTED = """
    linear = Add (product, bias)
    state = Add (before, Mul (linear, Sigmoid (linear)))
"""
"""[B, N, heads, H]: a layer, h + SiLU(linear(h)), of all heads."""
_FIRST = """
    multiplied = MatMul (hidden, weight)
    product = Reshape (multiplied, apart)
    before = Unsqueeze (hidden, axis_2)
"""
"""All heads read one state, so that their first layer is one product."""
_LATER = """
    rows = Reshape (Transpose <perm = [2, 0, 1, 3]> (before), of_heads)
    many = Transpose <perm = [1, 0, 2]> (MatMul (rows, weight))
    product = Reshape (many, Shape (before))
"""


@dataclass(frozen=True)
class DraftHeads(Graft):
    """Medusa's heads (arXiv 2401.10774) on the tap of the final norm: head i scores the token i + 2
    places behind a row, from its hidden state alone. Adds outputs heads.topk_ids and
    heads.topk_logits [B, N, heads, k], best first, of the owner head.0. Adds no input.

    The first layer of all heads is one product, every further one a batched one, and so is a shared
    lm_head's. On the graph of heads as they were published these take the place of their own
    products, head by head, and their logits [B, N, heads, V] stay. With bigrams (of DSpark's form)
    each is scored by the best token of the head before it too, and the first by the token behind
    the row, `last` [B, N]. A head that reads tokens too (Hydra, arXiv 2402.05109) is a graph of its
    own, which gets the outputs alone.
    """

    topk: int = 8
    laws: ClassVar[tuple[Law, ...]] = (head_formula,)

    def requires(self, model: ir.Model) -> None:
        if self.topk < 1:
            raise NotApplicable(f"draft-heads keeps at least 1 candidate, not topk={self.topk}")
        if found := by_role(read_ports(model), HEADS_IDS):
            raise NotApplicable("the graph has draft heads already", [found[0].name])
        if (parts := head_parts(model)) is None:
            raise NotApplicable(
                "draft-heads needs heads that read nothing but a state; give them: --head PATH"
            )
        check_state(self.name(), model, parts.hidden)
        if self.topk > parts.vocabulary:
            raise NotApplicable(
                f"draft-heads{{topk={self.topk}}}: the heads score {parts.vocabulary} tokens"
            )

    def apply(self, model: ir.Model) -> None:
        parts, tap = head_parts(model), heads_tap(model)
        assert parts is not None
        assert tap is not None
        owner = tap.owner if tap.direction == "in" else HEAD
        emit, old = Emit(model.graph, self.name()), output_of(model, HEADS_LOGITS, owner)
        if isinstance(parts, HeadParts):
            logits = logits_of(emit, value_of(model, tap), parts)
            if parts.bigrams is not None:
                logits = _with_bigrams(emit, logits, model, parts)
        else:
            assert old is not None, "a head that reads tokens is a graph of its own"
            logits = old
        best = candidates(emit, logits, parts, self.topk)
        ports = bring_out(model.graph, best, ("B", "N", parts.heads, self.topk), owner)
        if old is not None and old is not logits:
            _in_place_of(model.graph, old, logits)
        write_ports(model, [*read_ports(model), *ports])
        drop_unused(model)


def candidates(
    emit: Emit, logits: ir.Value, parts: HeadParts | SequentialHead, topk: int
) -> tuple[ir.Value, ir.Value]:
    """Ids and logits [B, N, heads, k] of the largest of logits [B, N, heads, V], best first."""
    flat = emit.const("heads.rows", [0, -1, parts.vocabulary], np.int64)
    port = Port(HEADS_LOGITS, "logits", "out", "float32", ("B", "N", parts.vocabulary))
    values, ids = Groups(emit, emit.op("Reshape", [logits, flat]), [port]).topk(topk)
    rows = emit.const("heads.topk", [0, -1, parts.heads, topk], np.int64)
    return emit.op("Reshape", [ids, rows]), emit.op("Reshape", [values, rows])


def bring_out(
    graph: ir.Graph, best: tuple[ir.Value, ir.Value], shape: tuple[str | int, ...], owner: str
) -> list[Port]:
    """Make these candidates outputs of that owner."""
    ports: list[Port] = []
    outputs = (HEADS_IDS, INT64), (HEADS_TOPK, FLOAT)
    for value, (role, dtype) in zip(best, outputs, strict=True):
        new_output(graph, value, role, dtype, shape)
        how = "equal" if dtype == INT64 else "close"
        kind = dtype.numpy().name
        ports.append(Port(role, role, "out", kind, shape, owner=owner, compare=how))
    return ports


def check_state(name: str, model: ir.Model, hidden: int) -> None:
    """Raise NotApplicable unless heads that read a state of `hidden` numbers may read what the
    final norm of a host gives, or what their own graph is fed."""
    carried = None if isinstance(read_facts(model), DraftHeadFacts) else model.meta.get(HEADS)
    if carried is not None and TapReading.read(carried) is not None:
        raise NotApplicable(
            f"{name} reads what the final norm gives, and these heads read another hidden state; "
            "leave it out, they are a stage of their own"
        )
    if (tap := heads_tap(model)) is None:
        raise NotApplicable(
            f"{name} reads what the final norm gives; put tap{{layers=norm}} before it"
        )
    if tap.shape[-1] != hidden:
        raise NotApplicable(
            f"the draft heads read a state of {hidden}, and the host's has {tap.shape[-1]}: they "
            "are another model's", [tap.name],
        )  # fmt: skip


def heads_tap(model: ir.Model) -> Port | None:
    """The port of the hidden state behind the final norm, an output of a host; or the input of a
    head's own graph, whatever state that is."""
    ports = by_role(read_ports(model), "hidden")
    return next((p for p in ports if p.tap == POSTNORM or p.direction == "in"), None)


def logits_of(emit: Emit, hidden: ir.Value, parts: HeadParts) -> ir.Value:
    """Logits [B, N, heads, V] of states [B, N, H]."""
    if hidden.dtype != FLOAT:
        hidden = emit.op("Cast", [hidden], to=FLOAT)
    heads, state = parts.heads, hidden
    for layer, products in enumerate(parts.layers):
        name = f"heads.layer.{layer}"
        bias = emit.const(f"{name}.bias", stacked_bias(products))
        if layer == 0:
            given = {
                "hidden": hidden, "weight": _side_by_side(emit, products, f"{name}.weight"),
                "apart": emit.const("heads.apart", [0, 0, heads, parts.hidden], np.int64),
            }  # fmt: skip
            made = write(emit, _FIRST, given, ["multiplied", "product", "before"])
            _stamped(made[0], DRAFT_LAYER)
            product, state = made[1:]
        else:
            given = {
                "before": state, "weight": _batched(emit, products, f"{name}.weight"),
                "of_heads": emit.const("heads.each", [heads, -1, parts.hidden], np.int64),
            }  # fmt: skip
            (product,) = write(emit, _LATER, given, ["product"])
        given = {"product": product, "bias": bias, "before": state}
        (state,) = write(emit, _ACTED, given, ["state"])
    return _scored(emit, state, parts)


def _with_bigrams(emit: Emit, logits: ir.Value, model: ir.Model, parts: HeadParts) -> ir.Value:
    """Logits [B, N, heads, V] with what the token before each says."""
    last = input_of(model, LAST, HEAD)
    assert last is not None, "heads with bigrams are a graph of their own"
    assert parts.bigrams is not None
    w1, w2 = (_known(emit, value) for value in parts.bigrams)
    axis = emit.const("axes.2", [2], np.int64)
    sizes = emit.const(f"heads.one.{parts.heads}", [1] * parts.heads, np.int64)
    split = emit.node("Split", [logits, sizes], [""] * parts.heads, axis=2)
    each = [emit.op("Squeeze", [value, axis]) for value in split.outputs]
    made = chained(emit, each, last, w1, w2)
    return emit.op("Concat", [emit.op("Unsqueeze", [value, axis]) for value in made], axis=2)


def _scored(emit: Emit, state: ir.Value, parts: HeadParts) -> ir.Value:
    """The states [B, N, heads, H] times the lm_head that they share: one product. Matrices of their
    own are read once each, as they are stored."""
    if parts.shared:
        return _product(emit, state, parts.scores[0])
    sizes = emit.const(f"heads.one.{parts.heads}", [1] * parts.heads, np.int64)
    split = emit.node("Split", [state, sizes], [""] * parts.heads, axis=2)
    pairs = zip(split.outputs, parts.scores, strict=True)
    return emit.op("Concat", [_product(emit, part, linear) for part, linear in pairs], axis=2)


def _product(emit: Emit, rows: ir.Value, linear: Linear) -> ir.Value:
    stored = linear.weight.stored
    weight = _known(emit, stored)
    if linear.weight.turned:
        weight = emit.op("Transpose", [weight], perm=[1, 0])
    product = _stamped(emit.op("MatMul", [rows, weight]), DRAFT_SCORES)
    return product if linear.bias is None else emit.op("Add", [product, _known(emit, linear.bias)])


def _stamped(product: ir.Value, role: str) -> ir.Value:
    node = product.producer()
    assert node is not None
    node.metadata_props[ROLE] = role
    return product


def _known(emit: Emit, value: ir.Value) -> ir.Value:
    """The initializer itself where it is the graph's own, else one of the same tensor."""
    assert value.const_value is not None
    if value.graph is not emit.graph:
        value = emit.initializer(free_name(emit.graph, f"heads.{value.name}"), value.const_value)
    return value if value.dtype == FLOAT else emit.op("Cast", [value], to=FLOAT)


def _side_by_side(emit: Emit, products: tuple[Linear, ...], name: str) -> ir.Value:
    """[H, heads x H]: the matrices of all heads, each stored [out, in], below one another."""
    rows = [linear.rows() for linear in products]
    parts = [
        lazy(p.weight.rows, FLOAT, p.weight.shape[::-1], f"{name}.{i}") if row is None else row
        for i, (p, row) in enumerate(zip(products, rows, strict=True))
    ]
    stacked = emit.initializer(free_name(emit.graph, name), Stacked(parts, name))
    return emit.op("Transpose", [stacked], perm=[1, 0])


def _batched(emit: Emit, products: tuple[Linear, ...], name: str) -> ir.Value:
    """[heads, in, out]."""
    shape = (len(products), *products[0].weight.shape)
    made = lazy(lambda: np.stack([p.weight.numpy() for p in products]), FLOAT, shape, name)
    return emit.initializer(free_name(emit.graph, name), made)


def _in_place_of(graph: ir.Graph, old: ir.Value, logits: ir.Value) -> None:
    """Bring out the logits under the name of the head's own."""
    logits.shape, logits.type, name = old.shape, old.type, old.name
    graph.outputs[list(graph.outputs).index(old)] = logits
    old.name, logits.name = None, name
