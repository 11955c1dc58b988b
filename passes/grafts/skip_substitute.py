"""skip-substitute: a step that passes by blocks, for each of which a low-rank correction stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.residual import Span, spans
from graftline.passes.grafts.layer_skip import check_bypass, route_outputs
from graftline.passes.grafts.low_rank import CORRECTION, FLOAT, STREAM, Corrections
from graftline.passes.grafts.refresh_state import BLOCK_NAME, step_flags
from graftline.passes.graph.cut import drop_ports, elements, hand_over, sizes_of_caches
from graftline.passes.graph.emit import Emit, drop_unused
from graftline.passes.graph.ports import input_of, output_of, port_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import Evaluate, Graft, Law, WeightFreeLaw
from graftline.ports import HELD, REFRESHED, read_ports
from graftline.route import Route


def substituted(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The graph gives what the host gives where the stream behind each of these blocks is its
    state plus what its correction alone makes of the stream that enters it. It hands the states on
    as they are, and its slots are not held."""
    assert isinstance(graft, SkipSubstitute)
    layers, ports = graft.layers(before), read_ports(after)
    if kept := [p.name for p in ports if p.role.startswith("cache") and p.layer in layers]:
        by = "is a cache of a block that is passed by"
        raise LawBroken(graft.name(), "substituted", f"'{kept[0]}'", by)
    given = graft.neutral(feed, after)
    states, flags = (port_of(after, role, "out") for role in (REFRESHED, HELD))
    assert states is not None
    assert flags is not None
    random = np.random.default_rng(7)
    shape = given[states.mirror or ""].shape
    own = random.normal(size=shape).astype(given[states.mirror or ""].dtype)
    given[states.mirror or ""] = own
    got = evaluate(after, given)
    comparison = Comparison(graft.name(), "substituted", activation_dtype(after))
    worst = comparison.output(states.name, got[states.name], own)
    rows = feed[roles_of(before).inputs["tokens"]].shape[1]
    if got[flags.name][:, :, :rows].any():
        by = "says that blocks which are passed by hold a slot"
        raise LawBroken(graft.name(), "substituted", f"'{flags.name}'", by)
    expected = substituted_outputs(before, graft, feed, own, evaluate)
    got, expected = (written_slots(side, ports, feed) for side in (got, expected))
    worst = max(worst, comparison.outputs(got, expected, ports))
    what = f"{len(expected)} outputs equal the host's with corrections for {len(layers)} blocks"
    return Evidence(what, worst, comparison.limit)


def lighter(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """A step has fewer nodes and reads fewer numbers than one of all blocks."""
    sizes = elements(before), elements(after)
    nodes = len(before.graph), len(after.graph)
    if sizes[1] >= sizes[0] or nodes[1] >= nodes[0]:
        by = f"{sizes[1]:,} numbers and {nodes[1]} nodes, against {sizes[0]:,} and {nodes[0]}"
        raise LawBroken(graft.name(), "lighter", "the step", by)
    return Evidence(f"{sizes[1]:,} of {sizes[0]:,} numbers, {nodes[1]} of {nodes[0]} nodes")


def substituted_outputs(
    host: ir.Model, graft: SkipSubstitute, feed: Feed, states: Array, evaluate: Evaluate
) -> Feed:
    """What a host would answer with its blocks' `states` [B, L, 1, H] and corrections in their
    places, computed without rewiring it."""
    layers, corrections = graft.layers(host), Corrections.of(host, graft.name())
    place = {layer: index for index, layer in enumerate(layers)}

    def leaves(run: range, stream: Array) -> Array:
        for block in run:
            own = layers[block]
            kept = {STREAM.format(own): stream.astype(np.float32)}
            blank = {STREAM.format(n): np.zeros_like(stream) for n in corrections.layers}
            added = evaluate(corrections.model, {**blank, **kept})[CORRECTION.format(own)]
            stream = states[:, place[block]] + added.astype(stream.dtype)
        return stream

    bare = host.clone()
    gone = [p.name for p in read_ports(bare) if p.role == REFRESHED]
    gone += [p.name for p in read_ports(bare) if p.role == HELD and p.direction == "out"]
    drop_ports(bare, gone)
    chosen = frozenset(layers)
    way = Route(len(block_outputs(bare.graph)), chosen, chosen)
    return route_outputs(bare, way, feed, evaluate, leaves)


@dataclass(frozen=True)
class SkipSubstitute(Graft):
    """Passes by the blocks that have low-rank corrections (LoRA-Drop, arXiv 2601.02569): what
    leaves one is what it gave at the last token that all blocks computed, refreshed, plus B (A x)
    of the stream x that enters it.

    Behind refresh-state, whose ports it keeps: it hands the states on, and writes 0 for its slots
    into held, because these blocks compute neither keys nor values. Their caches and weights leave
    the graph; the others keep the ports and numbers that they have in the host, so that the graph
    works on the host's own caches.

    `blocks`: as refresh-state's. Answers other logits than the host by design; its own law says
    which.
    """

    laws: ClassVar[tuple[Law, ...]] = (substituted,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (lighter,)
    numeric: ClassVar[bool] = False

    blocks: int = 0

    def layers(self, model: ir.Model) -> Mapping[int, int]:
        """The blocks of that host that it passes by, and whose correction each has. Raises
        NotApplicable."""
        return Corrections.of(model, self.name()).of_blocks(model, small=self.blocks > 0)

    def route(self, model: ir.Model) -> Route:
        """The same as a way through that host."""
        chosen = frozenset(self.layers(model))
        return Route(len(block_outputs(model.graph)), chosen, chosen)

    def requires(self, model: ir.Model) -> None:
        way = self.route(model)
        if input_of(model, REFRESHED) is None:
            raise NotApplicable(
                "skip-substitute reads what a step of all blocks left; put refresh-state before it"
            )
        found = spans(model.graph)
        if not isinstance(found, list) or [s.block for s in found] != list(range(way.count)):
            raise NotApplicable("skip-substitute needs a single residual stream through all blocks")
        for span in found:
            if span.block in way.whole:
                check_bypass(model.graph, span, way, self.name())
        sizes_of_caches(model, self.dropped(model), self.name())

    def apply(self, model: ir.Model) -> None:
        graph, layers, gone = model.graph, self.layers(model), self.dropped(model)
        corrections, facts = Corrections.of(model, self.name()), decoder_facts(model)
        size, given = elements(model), input_of(model, REFRESHED)
        assert given is not None
        self._hand_on(model, given)
        found = spans(graph)
        assert isinstance(found, list), "was found when the graph was looked at"
        passed = [span for span in found if span.block in layers]
        splits = Emit(graph, self.name(), graph[0], BLOCK_NAME)
        sizes = splits.const(f"ones.{len(layers)}", [1] * len(layers), np.int64)
        states = splits.node("Split", [given, sizes], [""] * len(layers), axis=1).outputs
        entered: dict[ir.Value, ir.Value] = {}
        for span, state in zip(passed, states, strict=True):
            start = entered.get(span.start, span.start)  # of a run, what stands in for the last one
            own = layers[span.block]
            entered[span.end] = self._substitute(graph, span, start, state, corrections, own)
        for node, cache in sizes_of_caches(model, gone, self.name()):
            node.replace_input_with(0, cache)
        drop_ports(model, gone)
        left = max(facts.parameters + elements(model) - size, 0)
        write_facts(model, replace(facts, layers=facts.layers - len(layers), parameters=left))

    def _substitute(
        self,
        graph: ir.Graph,
        span: Span,
        start: ir.Value,
        state: ir.Value,
        corrections: Corrections,
        own: int,
    ) -> ir.Value:
        """Let state + correction of the stream as it enters take the place of a block's end."""
        maker = span.end.producer()
        assert maker is not None, "a block ends in a node"
        emit, dtype = Emit(graph, self.name(), maker), span.end.dtype or FLOAT
        x = start if dtype == FLOAT else emit.op("Cast", [start], to=FLOAT)
        added = corrections.add(emit, own, x)
        added = added if dtype == FLOAT else emit.op("Cast", [added], to=dtype)
        axis = emit.const("axes.1", [1], np.int64)
        rows = emit.op("Shape", [added])  # as many as a sum of two streams has, for its norm's sake
        state = emit.op("Expand", [emit.op("Squeeze", [state, axis]), rows])
        end = emit.op("Add", [state, added])
        for value in (state, added, end):
            value.shape, value.type = span.end.shape, span.end.type
        hand_over(span.end, end)
        return end

    def _hand_on(self, model: ir.Model, given: ir.Value) -> None:
        """Give the states as they were given, and flags of slots that are not held."""
        graph = model.graph
        states, flags = (output_of(model, role) for role in (REFRESHED, HELD))
        assert states is not None
        assert flags is not None
        emit = Emit(graph, self.name(), block=BLOCK_NAME)
        same = emit.op("Identity", [given])
        same.shape, same.type = states.shape, states.type
        place, name = graph.outputs.index(states), states.name
        graph.outputs[place] = same
        states.name, same.name = None, name
        scatter = flags.producer()
        assert scatter is not None, "refresh-state writes the flags"
        zeros = step_flags(model, Emit(graph, self.name(), scatter, BLOCK_NAME), 0.0)
        scatter.replace_input_with(1, zeros)
        drop_unused(model)

    def dropped(self, before: ir.Model) -> frozenset[str]:
        layers = self.layers(before)
        return frozenset(p.name for p in read_ports(before) if p.state and p.layer in layers)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        left = {value.name for value in after.graph.inputs}
        return {name: array for name, array in feed.items() if name in left}

    def apart(self, before: ir.Model) -> Mapping[int, int]:
        return {layer: place for place, layer in enumerate(self.layers(before))}

    def within(self, blocks: int) -> SkipSubstitute:
        return replace(self, blocks=blocks)
