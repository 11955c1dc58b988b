"""markov: a block's tokens in turn, each scored by those before it too (DSpark, Domino)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.head_notes import MARKOV, MarkovNote, read_draft_ids
from graftline.law import Evidence
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.head_parts import carried
from graftline.passes.grafts.markov_walk import FLOAT, INT, Formula, walked
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import input_of, output_of, port_of, roles_of
from graftline.passes.graph.weights import lazy, tensor_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import CONFIDENCE, DRAFTS, Port, read_ports, write_ports
from graftline.tensors import numbers

STATES = "markov.states"
"""The output [B, R, H] that the law adds: the normed states of the rows that are asked for."""


def walk(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Tokens and confidences are their formula in numpy, over the logits and the states."""
    head, note = _head(after)
    host, roles = before.clone(), roles_of(after)
    shown = Emit(host.graph, graft.name()).op("Identity", [_states(host)])
    new_output(host.graph, shown, STATES, FLOAT, ["B", "R", "H"])
    found, got = evaluate(host, feed), evaluate(after, graft.neutral(feed, after))
    tokens, rows = (feed[roles.inputs[role]] for role in ("tokens", "rows"))
    first, drafts = np.take_along_axis(tokens, rows[:, :1], axis=1), got[DRAFTS]
    logits = found[roles.outputs["logits"]].astype(np.float64)
    chain = np.concatenate([first, drafts[:, :-1]], axis=1)
    table = numbers(tensor_of(_table(before))) if note.kind == "domino" else None
    scored, sure = Formula.of(head, note, table).scores(
        logits, found[STATES].astype(np.float64), chain
    )
    if not note.anchor:
        if not np.array_equal(drafts[:, :1], first):
            raise LawBroken(graft.name(), "walk", DRAFTS, "the first is not the last token itself")
        drafts, scored, logits = drafts[:, 1:], scored[:, 1:], logits[:, 1:]
    if np.array_equal(scored.argmax(-1), logits.argmax(-1)):
        raise LawBroken(graft.name(), "walk", DRAFTS, "the tokens before change no draft")
    comparison = Comparison(graft.name(), "walk", activation_dtype(after))
    gap = comparison.output(DRAFTS, _places(head, drafts), scored.argmax(-1), scored)
    if sure is not None:
        gap = max(gap, comparison.output(CONFIDENCE, got[CONFIDENCE], sure))
    return Evidence(f"{drafts.size} drafts follow the formula", gap, comparison.limit)


@dataclass(frozen=True)
class Markov(Graft):
    """Adds the output drafts [B, R] int64: the best token of each row that is asked for, by its
    logits and what a low-rank matrix adds for the token before it (DSpark), or a recurrent state of
    all before it (Domino); before the first row that is the row's own. And confidence [B, R], the
    chance that each is accepted, where the head gives it. The logits stay as they are.
    """

    laws: ClassVar[tuple[Law, ...]] = (walk,)

    def requires(self, model: ir.Model) -> None:
        _head(model)
        if port_of(model, "rows") is None:
            raise NotApplicable("markov needs the input 'rows'; put select-rows before it")
        if port_of(model, DRAFTS, "out") is not None:
            raise NotApplicable("the drafts are there already", [DRAFTS])

    def apply(self, model: ir.Model) -> None:
        head, note = _head(model)
        emit, ports = Emit(model.graph, self.name()), list(read_ports(model))
        given = {**_given(model), **_weights(emit, model, head)}
        if note.kind == "domino":
            given["w1"] = _table(model)
        made = walked(emit, note, given)
        for name, value, dtype in zip((DRAFTS, CONFIDENCE), made, (INT, FLOAT), strict=False):
            new_output(model.graph, value, name, dtype, ["B", "R"])
            compare, kind = "equal" if dtype == INT else "close", dtype.numpy().name
            ports.append(Port(name, name, "out", kind, ("B", "R"), compare=compare))
        write_ports(model, ports)


def _head(model: ir.Model) -> tuple[ir.Model, MarkovNote]:
    """Raises NotApplicable for a model that carries none."""
    needs = "markov needs a DSpark head with a Markov head, or a Domino head; give it: --head"
    return carried(model, MarkovNote, needs)


def _states(model: ir.Model) -> ir.Value:
    """[B, R, H]: what the lm_head reads."""
    value = with_role(model.graph, "lm_head")[0].inputs[0]
    assert value is not None
    return value


def _table(model: ir.Model) -> ir.Value:
    """[V, H]: the embedding of the head's own graph."""
    value = with_role(model.graph, "embedding")[0].inputs[0]
    assert value is not None
    return value


def _given(model: ir.Model) -> dict[str, ir.Value]:
    """What the walk reads of the graph."""
    found = {
        "logits": output_of(model, "logits"), "states": _states(model),
        "tokens": input_of(model, "tokens"), "rows": input_of(model, "rows"),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _weights(emit: Emit, model: ir.Model, head: ir.Model) -> dict[str, ir.Value]:
    """The head's own, as initializers; of a cut vocabulary the first rows, and its ids."""
    width = next(p for p in read_ports(model) if p.role == "logits").shape[-1]
    assert isinstance(width, int)
    found: dict[str, ir.Value] = {}
    for name, value in head.graph.initializers.items():
        if not name.startswith(MARKOV):
            continue
        tensor, own = tensor_of(value), name.removeprefix(MARKOV)
        shape = tensor.shape.numpy()
        if own == "w2" and shape[0] > width:
            tensor = _cut(tensor, width, name)
        found[own] = emit.initializer(name, tensor)
    if (ids := read_draft_ids(head)) is not None:
        found["ids"] = emit.const("markov.ids", ids[0][:width], np.int64)
    return found


def _cut(tensor: ir.TensorProtocol, rows: int, name: str) -> ir.TensorProtocol:
    shape = (rows, *tensor.shape.numpy()[1:])
    return lazy(lambda: numbers(tensor)[:rows], FLOAT, shape, name)


def _places(head: ir.Model, tokens: Array) -> Array:
    """Which of the head's own tokens those of the target are."""
    if (found := read_draft_ids(head)) is None:
        return tokens
    places = np.full(found[1], -1, np.int64)
    places[found[0]] = np.arange(len(found[0]))
    return places[tokens]
