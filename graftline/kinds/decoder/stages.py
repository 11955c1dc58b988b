"""The proof of a decoder's stages beside its engine: a fused step, sub-models, routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.build.engines import is_engine
from graftline.bundle.store import load_graph
from graftline.evaluate import Feed, oracle_limit, run
from graftline.exits import ADAPTER
from graftline.facts import DraftBlockFacts, as_decoder
from graftline.kinds.decoder.exits import prove_rest
from graftline.kinds.decoder.gates import prove_gates
from graftline.kinds.decoder.probe import first_rows
from graftline.kinds.decoder.proof import canonical_of, facts_of, near_rows
from graftline.kinds.decoder.schedules import prove_schedule, routes_of
from graftline.kinds.kind import Parts, Watch
from graftline.law import LawRow
from graftline.owners import HEAD
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.accelerated_exit import AcceleratedExit, accelerated_outputs
from graftline.passes.grafts.adapter_exit import AdapterExit, adapted_outputs
from graftline.passes.grafts.cut_depth import CutDepth, prefix, prefix_outputs
from graftline.passes.grafts.gate_mlp import GateMlp
from graftline.passes.grafts.layer_skip import LayerSkip, route, route_outputs
from graftline.passes.grafts.skip_substitute import (
    SkipSubstitute,
    substituted,
    substituted_outputs,
)
from graftline.passes.graph.ports import port_of, roles_of
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import REFRESHED
from graftline.recipe import FUSED, Recipe
from graftline.targets import CUDA

Array = npt.NDArray[Any]


def prove_stage(parts: Parts, stage: str, chosen: Recipe, say: Watch) -> list[LawRow]:
    """What a stage beside an engine owes: a fused step, a sub-model, or a route."""
    if parts.stages[stage].role == "fused":
        return [prove_fused(parts, chosen, say)]
    if parts.stages[stage].role == "route":
        laws = prove_route(parts, stage, say)
        if chosen.schedule and stage == routes_of(parts, chosen)[-1]:
            laws.append(prove_schedule(parts, chosen, say))
        return laws
    if parts.stages[stage].role == "rest":
        return prove_rest(parts, stage, say)
    return prove_depth(parts, stage, say)


def prove_fused(parts: Parts, chosen: Recipe, say: Watch) -> LawRow:
    """Law of the fused step, with the real weights: step by step it is the host's."""
    from graftline.runtimes.fused_block import block_depth
    from graftline.runtimes.fused_drafts import BlockDrafts, HeadDrafts, TableDrafts
    from graftline.runtimes.fused_law import fused_is_host
    from graftline.runtimes.ort.features import FeatureSession
    from graftline.runtimes.ort.fused import OrtFusedStep
    from graftline.runtimes.ort.session import OrtSession

    target, facts = parts.target, facts_of(parts)
    if is_engine(target):
        why = "the engine runs on its GPU; the reduced host was held to the same law"
        return LawRow(FUSED, "fused", "not_run", why)
    say("proof: the fused step against the host's own, with the real weights")
    capacity = min(facts.positions or 512, 512)
    graph, ports = parts.graph(parts.engine), parts.ports(parts.engine)
    session = OrtSession(graph, facts, ports, capacity=capacity)
    given = parts.graph(FUSED), parts.ports(FUSED), session
    if block_depth(parts.ports(FUSED)):
        head = parts.stages[HEAD].facts
        assert isinstance(head, DraftBlockFacts)
        opened = FeatureSession(parts.graph(HEAD), head, parts.ports(HEAD), capacity=capacity)
        drafts = BlockDrafts(opened.sibling(), chosen.options, parts.dtype)
        fused = OrtFusedStep(*given, opened)
        return LawRow(FUSED, "fused", "held", fused_is_host(session, fused, drafts))
    fused = OrtFusedStep(*given)
    if fused.heads is None:
        drafts = TableDrafts(chosen.options)
    else:
        stage = parts.graph(HEAD), parts.ports(HEAD)
        drafts = HeadDrafts(*stage, chosen.options, fused, parts.dtype)
    return LawRow(FUSED, "fused", "held", fused_is_host(session, fused, drafts))


def prove_depth(parts: Parts, stage: str, say: Watch) -> list[LawRow]:
    """Laws of a sub-model of the first blocks."""
    blocks = as_decoder(parts.stages[stage].facts).layers
    say(f"proof: the first {blocks} blocks against the whole, with the real weights")
    what = SubModel(CutDepth(blocks), prefix, "depth", "the host cut there")
    grafts = Pipeline.parse(parts.stages[stage].pipeline, GRAFTS).grafts
    for graft in grafts:
        if type(graft) in HEADS_OF_EXITS:
            told, scored = HEADS_OF_EXITS[type(graft)]
            what = replace(what, told=told, head=load_graph(parts.graph(ADAPTER)), scored=scored)
    return _prove_part(parts, stage, what)


def prove_route(parts: Parts, stage: str, say: Watch) -> list[LawRow]:
    """Laws of a route, whose pipeline names the blocks that it skips, gates MLPs, or passes by what
    has corrections."""
    grafts = Pipeline.parse(parts.stages[stage].pipeline, GRAFTS).grafts
    graft = next(g for g in grafts if isinstance(g, LayerSkip | GateMlp | SkipSubstitute))
    if isinstance(graft, GateMlp):
        return [prove_gates(parts, stage, graft, say)]
    if isinstance(graft, SkipSubstitute):
        say("proof: the route against the host with its corrections, with the real weights")
        told = "the host with states and corrections in its blocks' places"
        return _prove_part(parts, stage, SubModel(graft, substituted, "corrected", told))
    say("proof: the route against the host that skips the same, with the real weights")
    what = SubModel(graft, route, "skipped", "the host that skips the same")
    return _prove_part(parts, stage, what)


Scored = Callable[[ir.Model, int, ir.Model, Feed, Evaluate], Feed]
"""scored(host, blocks, head, feed, evaluate): what a host gives whose lm_head scores what a draft
head alone makes of its first blocks."""
HEADS_OF_EXITS: Mapping[type[Graft], tuple[str, Scored]] = {
    AdapterExit: ("the host's lm_head on the adapter alone", adapted_outputs),
    AcceleratedExit: ("the host's head on the accelerators alone", accelerated_outputs),
}
"""Grafts that put a draft head between an exit's blocks and the lm_head, and what such a stage is
held to, in words too."""


@dataclass(frozen=True)
class SubModel:
    """What a stage with some of a host's blocks is held to: the law of the graft that left the
    others out, and the law `engine`, by which its engine gives what `told`, the host taken apart by
    the first law, gives."""

    graft: CutDepth | LayerSkip | SkipSubstitute
    law: Law
    engine: str
    told: str
    head: ir.Model | None = None
    """The graph of the draft head between the blocks and the lm_head, where there is one."""
    scored: Scored | None = None

    def outputs(self, host: ir.Model, feed: Feed) -> Feed:
        """What the host gives without these blocks, computed without rewiring it."""
        if self.head is not None and self.scored is not None:
            assert isinstance(self.graft, CutDepth)
            return self.scored(host, self.graft.blocks, self.head, feed, run)
        if isinstance(self.graft, CutDepth):
            return prefix_outputs(host, self.graft.blocks, feed, run)
        if isinstance(self.graft, SkipSubstitute):
            states = port_of(host, REFRESHED)
            assert states is not None
            return substituted_outputs(host, self.graft, feed, feed[states.name], run)
        return route_outputs(host, self.graft.route(host), feed, run)


def _prove_part(parts: Parts, stage: str, part: SubModel) -> list[LawRow]:
    """Laws of a sub-model, with the real weights: its graft's own, on the canonical graph of the
    whole; and its engine against what that graph gives without the blocks that are left out."""
    from graftline.runtimes.ort.cuda import SESSIONS
    from graftline.runtimes.ort.provider import cuda_missing

    target, facts, law = parts.target, facts_of(parts), part.law.__name__
    canonical = canonical_of(parts)
    size = sum(v.const_value.nbytes for v in canonical.graph.initializers.values() if v.const_value)
    if size > (most := oracle_limit()):
        why = f"the whole weighs {size / 1e9:.1f} GB, the oracle takes {most / 1e9:.1f} GB here"
        return [LawRow(stage, law, "not_run", why)]
    random = np.random.default_rng(4)
    tokens = random.integers(0, facts.vocabulary, (1, 8), dtype=np.int64)
    roles, feed = roles_of(canonical), first_rows(canonical, tokens)
    states = {
        p.name: random.normal(size=(1, *map(int, p.shape[1:]))).astype(p.dtype)
        for p in parts.ports(stage) if p.state == "running" and p.direction == "in"
    }  # fmt: skip
    feed |= states
    made = canonical.clone()
    made.meta.update(canonical.meta)
    part.graft.apply(made)
    laws = [LawRow.of(stage, law, part.law(part.graft, canonical, made, feed, run))]
    if target == CUDA and cuda_missing():
        return laws
    session = SESSIONS[target](parts.graph(stage), facts, parts.ports(stage), capacity=64)
    expected = part.outputs(canonical, feed)[roles.outputs["logits"]][0]
    session.reset(1)
    for name, state in states.items():
        session.caches(0)[name][...] = state
    first = session.prefill([tokens[0, :4]]).logits[0].copy()
    got = np.concatenate([first, session.score(tokens[:, 4:]).logits[0]])
    checked = near_rows(stage, part.engine, got, expected[3:], facts, parts.dtype, part.told)
    return [*laws, LawRow.of(stage, part.engine, checked)]
