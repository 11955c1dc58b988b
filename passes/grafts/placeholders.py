"""placeholders: ids behind the vocabulary that stand for tokens to come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import DecoderFacts, decoder_facts, write_facts
from graftline.head_notes import PLACEHOLDERS
from graftline.law import Evidence
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import Emit, new_input
from graftline.passes.graph.ports import input_of, roles_of
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import constant, tensor_of
from graftline.passes.pipeline.graft import Evaluate, Graft, Law

ROWS = "placeholders.rows"
"""The initializer of a graph that has placeholders."""
LAW = "placeholder-rows"
EVERY = 3
"""One in so many rows of the law's feed is a placeholder."""
_IDS = """
    stands = GreaterOrEqual (tokens, vocabulary)
    known = Where (stands, zero, tokens)
"""
"""[B, N]: which ids are placeholders, and the others, for the host's own table."""
_EMBEDDED = """
    place = Where (stands, Sub (tokens, vocabulary), zero)
    embedded = Where (Unsqueeze (stands, axis_2), Gather (rows, place), looked_up)
"""


def placeholder_rows(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Under ids of the vocabulary, its last among them, every output is the host's to the bit; and
    with placeholders in between, what the host gives with the head's rows as their embeddings."""
    roles, vocabulary = roles_of(after), decoder_facts(before).vocabulary
    assert isinstance(graft, Placeholders)
    name, rows = roles.inputs["tokens"], graft.rows(after)
    tokens = feed[name].copy()
    tokens[:, -1] = vocabulary - 1
    fed = {**feed, name: tokens}
    now, was = evaluate(after, fed), evaluate(before, fed)
    same_bits(graft, LAW, now, was, "under ids of the vocabulary")
    places = np.arange(tokens.size).reshape(tokens.shape)
    stands = places % EVERY == EVERY - 1
    mixed = np.where(stands, vocabulary + places // EVERY % len(rows), tokens)
    host = before.clone()
    embedding = with_role(host.graph, "embedding")[0].outputs[0]
    table, dtype = _table(before), embedding.dtype or ir.DataType.FLOAT
    given = new_input(host.graph, "graftline.given", dtype, ["B", "N", table.shape[1]])
    embedding.replace_all_uses_with(given)
    numbers = table[np.where(stands, 0, tokens)]
    numbers[stands] = rows[mixed[stands] - vocabulary].astype(table.dtype)
    expected = evaluate(host, {**fed, "graftline.given": numbers})
    same_bits(graft, LAW, evaluate(after, {**feed, name: mixed}), expected, "with placeholders")
    return Evidence(
        f"{len(rows)} ids from {vocabulary} on are read as the head's rows, the others as before, "
        f"to the bit: {int(stands.sum())} of {stands.size} rows"
    )


@dataclass(frozen=True)
class Placeholders(Graft):
    """Gives the token embedding K more rows, the ids from V on of a vocabulary of V: behind a text,
    or a node of a drafted tree, a chain of them foretells the tokens further ahead, in the same
    pass. The rows are those of a head that is made of them (Parallel Prompt Decoding, arXiv
    2405.18628); with `count`, so many times that of one token of the host's own, which was trained
    to stand for those to come (Lexical Unit Decoding, arXiv 2405.15208): `token`, or -1: the mask
    token that its checkpoint names.

    Logits keep V entries, so that no rule can choose one. The host's table stays as it is stored.
    Adds no input.
    """

    laws: ClassVar[tuple[Law, ...]] = (placeholder_rows,)
    count: int = 0
    token: int = -1

    def own_token(self, facts: DecoderFacts) -> int:
        """The host's own token whose row placeholders have. Raises NotApplicable where neither the
        option nor the host's facts name one of its vocabulary."""
        named = facts.mask_token if self.token == -1 else self.token
        if named is None:
            raise NotApplicable(
                "placeholders needs a model with a token that stands for those to come, and "
                "neither its config nor its tokenizer names a mask token; use a model that was "
                f"trained for it, or name its id: placeholders{{count={self.count}, token=ID}}"
            )
        if not 0 <= named < facts.vocabulary:
            raise NotApplicable(
                f"placeholders: the token {named} is not among the {facts.vocabulary} ids of the "
                "model; name another one"
            )
        return named

    def rows(self, model: ir.Model) -> Array:
        """[K, H] in fp32."""
        if self.count:
            row = _table(model)[self.own_token(decoder_facts(model))]
            return np.tile(row.astype(np.float32), (self.count, 1))
        head: ir.Model = model.meta[HEADS]
        return tensor_of(head.graph.initializers[PLACEHOLDERS]).numpy()

    def requires(self, model: ir.Model) -> None:
        if self.count < 0:
            raise NotApplicable(f"placeholders: count={self.count} is not a number of tokens")
        if self.count:
            self.own_token(decoder_facts(model))
        elif self.token != -1:
            raise NotApplicable("placeholders: a token needs a count: placeholders{count=3, ...}")
        else:
            _check_head(model)
        node = check_ids(self.name(), model)
        held, axis = constant(node.inputs[0]), node.attributes.get("axis")
        if held is None or len(tensor_of(held).shape) != 2 or (axis and axis.as_int()):
            raise NotApplicable(
                "placeholders adds rows to a table of tokens, and this host computes its embedding",
                [node.name or "embedding"],
            )
        hidden, rows = int(tensor_of(held).shape[1]), self.rows(model)  # pyright: ignore[reportArgumentType]
        if rows.shape[1] != hidden:
            raise NotApplicable(
                f"the head's rows are of {rows.shape[1]} numbers, and the host's of {hidden}: they "
                "are another model's"
            )

    def apply(self, model: ir.Model) -> None:
        graph, facts = model.graph, decoder_facts(model)
        (node,) = with_role(graph, "embedding")
        looked_up = node.outputs[0]
        dtype = looked_up.dtype or ir.DataType.FLOAT
        emit = Emit(graph, self.name(), at=node)
        given = stand_ins(emit, model)
        rows = self.rows(model).astype(dtype.numpy())
        held = emit.initializer(ROWS, ir.tensor(rows, name=ROWS))
        users = list(looked_up.uses())
        given |= {"rows": held, "looked_up": looked_up}
        behind = Emit(graph, self.name(), at=following(graph, node), block=emit.block)
        (embedded,) = write(behind, _EMBEDDED, given, ["embedded"])
        embedded.shape, embedded.type = looked_up.shape, looked_up.type
        for user, index in users:
            user.replace_input_with(index, embedded)
        write_facts(model, replace(facts, placeholders=len(rows)))


def embeddings_graph(rows: Array) -> ir.Model:
    """A graph that holds the embeddings of a head and computes nothing."""
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}), ir_version=11)
    held = ir.tensor(rows.astype(np.float32), name=PLACEHOLDERS)
    Emit(model.graph, PLACEHOLDERS).initializer(PLACEHOLDERS, held)
    return model


def carried(model: ir.Model) -> ir.Model | None:
    """The head whose embeddings a graph has as its placeholders; None where it has none."""
    held = model.graph.initializers.get(ROWS)
    return None if held is None else embeddings_graph(tensor_of(held).numpy())


def check_ids(who: str, model: ir.Model) -> ir.Node:
    """The look-up of a host that may read ids behind its vocabulary. Raises NotApplicable where it
    reads some already, or ids elsewhere than in its table of tokens."""
    if count := decoder_facts(model).placeholders:
        raise NotApplicable(f"the graph has {count} placeholders already")
    found = with_role(model.graph, "embedding")
    if len(found) != 1:
        raise NotApplicable(f"{who} needs the stamped embedding; run anchors first")
    tokens = input_of(model, "tokens")
    readers = [] if tokens is None else tokens.consumers()
    others = [n for n in readers if n not in found and n.op_type not in ("Shape", "Size")]
    if others or found[0].inputs[1] is not tokens:
        raise NotApplicable(
            f"{who} needs a host that reads ids in its table of tokens alone, and this one "
            "computes with them elsewhere too",
            [f"{node.op_type} {node.name or ''}".strip() for node in others or found],
        )
    return found[0]


def stand_ins(emit: Emit, model: ir.Model) -> dict[str, ir.Value]:
    """Let the host look up its first token where an id stands for a token to come: `tokens`,
    `vocabulary`, `zero`, and `stands` [B, N], where that is."""
    (node,), tokens = with_role(model.graph, "embedding"), input_of(model, "tokens")
    assert tokens is not None
    first = emit.const("placeholders.first", decoder_facts(model).vocabulary, np.int64)
    given = {
        "tokens": tokens, "zero": emit.const("placeholders.none", 0, np.int64),
        "vocabulary": first,
    }  # fmt: skip
    stands, known = write(emit, _IDS, given, ["stands", "known"])
    node.replace_input_with(1, known)
    return {**given, "stands": stands}


def following(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The node behind that one."""
    nodes = list(graph)
    return nodes[nodes.index(node) + 1]


def _check_head(model: ir.Model) -> None:
    head = model.meta.get(HEADS)
    if head is None or PLACEHOLDERS not in head.graph.initializers:
        raise NotApplicable(
            "placeholders needs a head of embeddings that foretell tokens, as PPD's; give it: "
            "--head PATH"
        )


def _table(model: ir.Model) -> Array:
    """[V, H]: the host's own."""
    held = with_role(model.graph, "embedding")[0].inputs[0]
    assert held is not None
    return tensor_of(held).numpy()


def same_bits(graft: Graft, law: str, got: Feed, expected: Feed, where: str) -> None:
    """Raise LawBroken unless all `expected` outputs are there, to the bit."""
    for name, array in expected.items():
        if got[name].tobytes() != array.tobytes():
            raise LawBroken(graft.name(), law, f"'{name}'", f"differs {where}")
