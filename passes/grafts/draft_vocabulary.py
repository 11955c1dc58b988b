"""draft-vocabulary: a head that scores fewer tokens than its target has, in the target's ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts, write_facts
from graftline.head_notes import NEVER, read_draft_ids
from graftline.law import Evidence
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import output_of, roles_of
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import by_role, read_ports, write_ports


def renamed(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Every score has moved to its token's id, and the others are NEVER; the reductions name ids.
    """
    if (found := read_draft_ids(before)) is None:
        return Evidence("all ids of the target are scored as they are")
    ids, vocabulary = found
    old, new = evaluate(before, feed), evaluate(after, feed)
    roles = roles_of(after).outputs
    logits = old[roles["logits"]]
    ids = ids[: logits.shape[-1]]  # of a cut vocabulary its first
    expected = np.full((*logits.shape[:-1], vocabulary), NEVER, np.float32)
    expected[..., ids] = logits
    if not np.array_equal(new[roles["logits"]], expected):
        raise LawBroken(graft.name(), "renamed", "logits", "are not where their tokens are")
    for role in ("argmax", "topk_ids"):
        if role in roles and not np.array_equal(new[roles[role]], ids[old[roles[role]]]):
            raise LawBroken(graft.name(), "renamed", role, "are not the target's ids")
    return Evidence(f"{len(ids)} of {vocabulary} ids are scored, each as before")


@dataclass(frozen=True)
class DraftVocabulary(Graft):
    """Gives the logits [B, N, V] of a head with a vocabulary of its own as the target numbers its
    tokens, and argmax and topk_ids too. Put it behind reduce-logits, which then looks at the few
    that there are. Does nothing to a head that scores all of them."""

    laws: ClassVar[tuple[Law, ...]] = (renamed,)

    def requires(self, model: ir.Model) -> None:
        if not by_role(read_ports(model), "logits", "out"):
            raise NotApplicable("draft-vocabulary needs the output 'logits'")

    def apply(self, model: ir.Model) -> None:
        if (found := read_draft_ids(model)) is None:
            return
        ids, vocabulary = found
        drafted = decoder_facts(model).vocabulary
        ids = ids[:drafted]
        places = np.full(vocabulary, drafted, np.int64)
        places[ids] = np.arange(drafted)
        emit, ports = Emit(model.graph, self.name()), list(read_ports(model))
        table = emit.const("draft.ids", ids, np.int64)
        for place, port in enumerate(ports):
            if port.direction != "out" or port.role not in ("logits", "argmax", "topk_ids"):
                continue
            value = output_of(model, port.role)
            assert value is not None
            value.name = f"drafted.{port.name}"
            if port.role == "logits":
                moved = _moved(emit, value, places)
                ports[place] = port = replace(port, shape=(*port.shape[:-1], vocabulary))
            else:
                moved = emit.op("Gather", [table, value], axis=0)
            model.graph.outputs.remove(value)
            new_output(model.graph, moved, port.name, _dtype(value), port.shape)
        write_ports(model, ports)
        write_facts(model, replace(decoder_facts(model), vocabulary=vocabulary))

    def carried(self, outputs: Feed, after: ir.Model) -> Feed:
        if (found := read_draft_ids(after)) is None:
            return outputs
        ids = after.graph.initializers["draft.ids"].const_value
        assert ids is not None
        kept, roles, back = ids.numpy(), roles_of(after).outputs, dict(outputs)
        back[roles["logits"]] = outputs[roles["logits"]][..., kept]
        places = np.zeros(found[1], np.int64)
        places[kept] = np.arange(len(kept))
        for role in ("argmax", "topk_ids"):
            if role in roles:
                back[roles[role]] = places[outputs[roles[role]]]
        return back


def _moved(emit: Emit, logits: ir.Value, places: Array) -> ir.Value:
    """Logits of all the target's ids: column places[i], or NEVER behind the last."""
    dtype = _dtype(logits)
    pads = emit.const("draft.pads", [0, 0, 0, 0, 0, 1], np.int64)
    never = emit.const(f"draft.never.{dtype.name.lower()}", NEVER, dtype.numpy())
    padded = emit.op("Pad", [logits, pads, never], mode="constant")
    return emit.op("Gather", [padded, emit.const("draft.places", places, np.int64)], axis=2)


def _dtype(value: ir.Value) -> ir.DataType:
    return value.dtype or ir.DataType.FLOAT
