"""Canonicalize: any exported decoder, brought to the one form every other graft reads.

    tokens [B, N], positions [B, N] -> logits [B, N, V], at opset 24, with one node per norm, per
    rotary embedding and per attention; native KV groups, masks by meaning, no cache, same weights

Structure is recognised by what it computes where it depends on no weight (masks, angles, shapes),
and by its few spellings elsewhere (norms, softmax). Nothing here knows an architecture by name, and
what is not understood is refused with the nodes looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import FACTS_KEY, decoder_facts, write_facts
from graftline.passes.canonical.attention.attention import AttentionReader
from graftline.passes.canonical.ends import open_head, own_head_weight, settle_positions
from graftline.passes.canonical.entry.assumptions import check_assumptions
from graftline.passes.canonical.entry.entry import Entry, enter
from graftline.passes.canonical.facts import settle_facts
from graftline.passes.canonical.linear import unflatten_rows
from graftline.passes.canonical.mask.writer import MaskWriter
from graftline.passes.canonical.norms.fuse import fuse_norms
from graftline.passes.canonical.norms.operators import expand_fused_norms
from graftline.passes.canonical.opset.contrib import expand_contrib, refuse_quantized
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.canonical.rotary.rotary import RotaryReader
from graftline.passes.canonical.rotary.tables import held_positions
from graftline.passes.canonical.rows import refuse_mixing
from graftline.passes.canonical.shapes import Measures, dedupe, fold, settle_shapes
from graftline.passes.graph.meaning import hidden_values, label, label_value
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.names import separate_names
from graftline.passes.graph.shapes.whole import infer
from graftline.passes.laws.masks import masks
from graftline.passes.pipeline.graft import Graft, Stage, WeightFreeLaw
from graftline.ports import Port, by_role, read_assumptions, write_assumptions, write_ports
from graftline.raw_ports import read_raw, write_raw

_SETTLE_ROUNDS = 4


@dataclass(frozen=True)
class Canonicalize(Graft):
    """Brings a raw decoder to canonical form. `positions` bounds the rotary tables: what the host's
    facts say, or `positions` where they say nothing, and never more than `cap`. `causal_mask`: the
    user says that a mask input over pairs of tokens hides the future, where the graph does not.
    """

    stage: ClassVar[Stage] = "front"
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (masks,)

    positions: int = 8192
    cap: int = 32768
    causal_mask: bool = False

    def requires(self, model: ir.Model) -> None:
        refuse_quantized(model.graph)

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        open_graph(model)
        expand_fused_norms(graph)
        infer_types(model)
        entry = enter(model)
        tokens, positions, own = entry.tokens, entry.positions, entry.own_positions
        write_raw(model, entry.raw)
        write_assumptions(model, (*read_assumptions(model), *entry.assumptions))
        expand_contrib(model, tokens, positions)
        if entry.replaced:
            infer_types(model)
            check_assumptions(entry, *measure(graph, tokens, positions), self.causal_mask)
        settle(model, tokens, positions)
        infer_types(model)
        fuse_norms(model)
        common.RemoveUnusedNodesPass()(model)
        held = self._held(model, tokens, positions)
        rows = min(held or self.positions, self.cap)
        self._attention(model, entry, rows, held)
        dedupe(model)
        measures, hidden = measure(graph, tokens, positions)
        settle_positions(graph, measures, hidden, own, rows)
        if open_head(graph, graph.outputs[0], measures, hidden):
            dedupe(model)
            measures, hidden = measure(graph, tokens, positions)
        flat = unflatten_rows(graph, measures, hidden)
        dedupe(model)
        own_head_weight(graph, graph.outputs[0], hidden)
        settle(model, tokens, positions)
        check(model, tokens, positions, flat)
        finish(model, tokens, positions)
        settle_facts(model)

    def _held(self, model: ir.Model, tokens: ir.Value, positions: ir.Value) -> int:
        """How many positions the host's facts, or its own tables, let it address, which become its
        facts; 0 where neither says anything."""
        stated = _stated(model)
        most = min(stated or self.positions, self.cap)
        held = held_positions(model.graph, *measure(model.graph, tokens, positions), most)
        if held == most:
            return stated
        if FACTS_KEY in model.metadata_props:
            write_facts(model, replace(decoder_facts(model), positions=held))
        return held

    def _attention(self, model: ir.Model, entry: Entry, rows: int, bound: int) -> None:
        """Every attention as a node; tables hold `rows`, and no more than `bound` positions are
        ever fed (0: any number)."""
        graph, positions = model.graph, entry.positions
        measures, hidden = measure(graph, entry.tokens, positions, bound)
        rotary = RotaryReader(graph, measures, hidden, positions, entry.own_positions, rows)
        masks = MaskWriter(graph, positions)
        reader = AttentionReader(graph, measures, hidden, rotary, masks)
        done = reader.run()
        if missed := reader.missed():
            raise refusal("an attention is not understood", missed)
        if not done:
            what = "no attention found that is written in standard operators"
            raise refusal(what, list(reader.mismatches.values()))
        if reader.positions and FACTS_KEY in model.metadata_props:
            facts = decoder_facts(model)
            held = min(facts.positions or reader.positions, reader.positions)
            write_facts(model, replace(facts, positions=held))

    def dropped(self, before: ir.Model) -> frozenset[str]:
        """All of them: what remains has its canonical name."""
        return frozenset(v.name or "" for v in (*before.graph.inputs, *before.graph.outputs))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        """Token ids and positions under the canonical names; caches and masks are gone.

        A host without a positions input counts from zero, and so does its canonical form.
        """
        raw = read_raw(after.metadata_props)
        tokens = feed[by_role(raw, "tokens")[0].name].astype(np.int64)
        given = [feed[p.name] for p in by_role(raw, "positions")]
        counted = np.arange(tokens.shape[1], dtype=np.int64)
        positions = np.broadcast_to(given[0] if given else counted, tokens.shape)
        return {"tokens": tokens, "positions": positions.astype(np.int64)}


def _stated(model: ir.Model) -> int:
    """How many positions the host's facts say it addresses; 0 where they say nothing."""
    return decoder_facts(model).positions if FACTS_KEY in model.metadata_props else 0


def measure(
    graph: ir.Graph, tokens: ir.Value, positions: ir.Value, most: int = 0
) -> tuple[Measures, set[ir.Value]]:
    """Shapes at several sizes, and which values are activations; tables hold `most` positions."""
    return Measures(graph, tokens, positions, most), hidden_values(graph, tokens)


def settle(model: ir.Model, tokens: ir.Value, positions: ir.Value) -> None:
    """Fold constants and shape arithmetic until nothing changes."""
    for _ in range(_SETTLE_ROUNDS):
        fold(model)
        dedupe(model)
        measures, hidden = measure(model.graph, tokens, positions)
        changed = settle_shapes(model, measures, hidden)
        dedupe(model)
        if not changed:
            return


def infer_types(model: ir.Model) -> None:
    """Element types of all values; shapes are measured, not inferred."""
    if all(v.dtype is not None for n in model.graph for v in n.outputs):
        return
    separate_names(model.graph)
    if reason := infer(model, strict=False):
        raise NotApplicable(f"ONNX cannot infer the graph's types: {reason}")


def check(
    model: ir.Model, tokens: ir.Value, positions: ir.Value, flat: Sequence[Mismatch]
) -> None:
    """Refuse a result that is not canonical; `flat`: why rows of all sequences together were left
    as they are."""
    graph = model.graph
    measures, hidden = measure(graph, tokens, positions)
    dims = measures.dims(graph.outputs[0])
    if dims is None or dims[:2] != ["B", "N"] or len(dims) != 3:
        own = Mismatch.at(graph.outputs[0], f"logits have shape {dims}")
        raise refusal("the logits are not [B, N, V]", [own, *flat])
    refuse_mixing(graph, measures, hidden)
    for node in graph:
        if node.op_type == "Attention" or node.outputs[0] not in hidden:
            continue
        for value in node.inputs:
            if value is None or value in hidden or value.const_value is not None:
                continue
            sizes = measures.dims(value)
            rows = sizes is not None and "N" in sizes
            if rows and not _reads(value, positions) and not _is_shape(value):
                raise NotApplicable(
                    "a value per position is computed from order, not from positions",
                    [label(node), label_value(value)],
                )


def _is_shape(value: ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_floating_point()


def _reads(value: ir.Value, source: ir.Value) -> bool:
    todo, seen = [value], set[ir.Value]()
    while todo:
        current = todo.pop()
        if current is source:
            return True
        node = current.producer()
        for v in node.inputs if node is not None else ():
            if v is not None and v not in seen:
                seen.add(v)
                todo.append(v)
    return False


def finish(model: ir.Model, tokens: ir.Value, positions: ir.Value) -> None:
    """Shapes in B and N on every value, ports, names."""
    graph = model.graph
    infer_types(model)
    measures, _ = measure(graph, tokens, positions)
    for node in graph:
        for value in node.outputs:
            dims = measures.dims(value)
            known = (
                None
                if dims is None
                else ir.Shape([None if isinstance(d, str) and "*" in d else d for d in dims])
            )
            value.shape = known
    common.NameFixPass()(model)
    logits = graph.outputs[0]
    logits.name = "logits"
    dims = measures.dims(logits) or ["B", "N", 0]
    dtype = str(logits.dtype or ir.DataType.FLOAT).lower()
    names = {"float": "float32", "double": "float64"}
    rows = ("B", "N")
    write_ports(model, [
        Port("tokens", "tokens", "in", "int64", rows),
        Port("positions", "positions", "in", "int64", rows),
        Port("logits", "logits", "out", names.get(dtype, dtype), (*rows, int(dims[2]))),
    ])  # fmt: skip
    used = {""} | {n.domain for n in graph}
    for domain in set(graph.opset_imports) - used:
        del graph.opset_imports[domain]
