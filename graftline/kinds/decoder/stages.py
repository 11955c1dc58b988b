"""The proof of a decoder's stages beside its engine: a fused step, and sub-models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.build.engines import is_engine
from graftline.bundle.store import load_graph
from graftline.evaluate import oracle_limit, run
from graftline.facts import as_decoder
from graftline.kinds.decoder.proof import facts_of, near_rows
from graftline.kinds.kind import Parts, Watch
from graftline.law import LawRow
from graftline.owners import HEAD
from graftline.passes.grafts.cut_depth import CutDepth, prefix, prefix_outputs
from graftline.passes.grafts.kv_cache import empty_caches
from graftline.passes.graph.ports import roles_of
from graftline.recipe import FUSED, Recipe
from graftline.targets import CUDA

Array = npt.NDArray[Any]


def prove_stage(parts: Parts, stage: str, chosen: Recipe, say: Watch) -> list[LawRow]:
    """What a stage beside an engine owes: a fused step, or a sub-model."""
    if parts.stages[stage].role == "fused":
        return [prove_fused(parts, chosen, say)]
    return prove_depth(parts, stage, say)


def prove_fused(parts: Parts, chosen: Recipe, say: Watch) -> LawRow:
    """Law of the fused step, with the real weights: step by step it is the host's."""
    from graftline.runtimes.fused_drafts import HeadDrafts, TableDrafts
    from graftline.runtimes.fused_law import fused_is_host
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
    fused = OrtFusedStep(parts.graph(FUSED), parts.ports(FUSED), session)
    if fused.heads is None:
        drafts = TableDrafts(chosen.options)
    else:
        stage = parts.graph(HEAD), parts.ports(HEAD)
        drafts = HeadDrafts(*stage, chosen.options, fused, parts.dtype)
    return LawRow(FUSED, "fused", "held", fused_is_host(session, fused, drafts))


def prove_depth(parts: Parts, stage: str, say: Watch) -> list[LawRow]:
    """Laws of a sub-model, with the real weights: the law `prefix` of its cut, on the canonical
    graph of the whole; and its engine against what that graph gives where it is cut."""
    from graftline.runtimes.ort.cuda import SESSIONS
    from graftline.runtimes.ort.provider import cuda_missing

    target, facts = parts.target, facts_of(parts)
    blocks = as_decoder(parts.stages[stage].facts).layers
    say(f"proof: the first {blocks} blocks against the whole draft, with the real weights")
    canonical = load_graph(parts.graph(parts.canonical))
    size = sum(v.const_value.nbytes for v in canonical.graph.initializers.values() if v.const_value)
    if size > (most := oracle_limit()):
        why = f"the draft weighs {size / 1e9:.1f} GB, the oracle takes {most / 1e9:.1f} GB here"
        return [LawRow(stage, "prefix", "not_run", why)]
    tokens = np.random.default_rng(4).integers(0, facts.vocabulary, (1, 8), dtype=np.int64)
    roles, every = roles_of(canonical), np.arange(8)[None]
    start = np.zeros(1, np.int64)
    feed = roles.feed(tokens=tokens, positions=every, rows=every, write_index=start)
    feed |= empty_caches(canonical, 1, 10)
    cut, graft = canonical.clone(), CutDepth(blocks)
    graft.apply(cut)
    laws = [LawRow.of(stage, "prefix", prefix(graft, canonical, cut, feed, run))]
    if target == CUDA and cuda_missing():
        return laws
    session = SESSIONS[target](parts.graph(stage), facts, parts.ports(stage), capacity=64)
    expected = prefix_outputs(canonical, blocks, feed, run)[roles.outputs["logits"]][0]
    session.reset(1)
    first = session.prefill([tokens[0, :4]]).logits[0].copy()
    got = np.concatenate([first, session.score(tokens[:, 4:]).logits[0]])
    checked = near_rows(stage, "depth", got, expected[3:], facts, parts.dtype, "the host cut there")
    return [*laws, LawRow.of(stage, "depth", checked)]
