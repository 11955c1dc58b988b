"""The proof of a decoder's exits: its first blocks, and all others from where those leave off."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.bundle.store import load_graph
from graftline.evaluate import run
from graftline.exits import exit_stage
from graftline.facts import as_decoder
from graftline.kinds.decoder.probe import first_rows
from graftline.kinds.decoder.proof import facts_of, near_rows, too_large
from graftline.kinds.kind import Parts, Watch
from graftline.law import LawRow
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.depth_rest import DepthRest, joined
from graftline.runtimes.ort.rest import RestSession
from graftline.runtimes.ort.session import OrtSession

Array = npt.NDArray[Any]
PROMPT, ROWS, SLOTS = 4, 4, 64
"""Rows that the whole target reads first, then rows that an exit and its rest take over."""


def prove_rest(parts: Parts, stage: str, say: Watch) -> list[LawRow]:
    """Laws of the blocks behind an exit, with the real weights: `joined` of its graft, and
    `resumed`, by which rows that the exit's engine has begun, and this one ends, on the target's
    caches, are what the target's own engine makes of them."""
    if short := too_large(parts):
        return [LawRow(stage, law, "not_run", short) for law in ("joined", "resumed")]
    say(f"proof: {stage} from where the blocks before it leave off, with the real weights")
    canonical = load_graph(parts.graph(parts.canonical))
    tokens = np.random.default_rng(4).integers(
        0, facts_of(parts).vocabulary, (1, PROMPT + ROWS), dtype=np.int64
    )
    grafts = Pipeline.parse(parts.stages[stage].pipeline, GRAFTS).grafts
    graft = next(g for g in grafts if isinstance(g, DepthRest))
    made = canonical.clone()
    graft.apply(made)
    law = joined(graft, canonical, made, first_rows(canonical, tokens), run)
    laws = [LawRow.of(stage, "joined", law)]
    if not graft.blocks:  # reads what the target itself brings out
        return laws
    got, expected = resumed(parts, stage, graft.blocks, tokens[0])
    told = near_rows(
        stage, "resumed", got, expected, facts_of(parts), parts.dtype, "the target's own engine"
    )
    return [*laws, LawRow.of(stage, "resumed", told)]


def resumed(parts: Parts, stage: str, blocks: int, tokens: Array) -> tuple[Array, Array]:
    """Logits [ROWS, V] of the last of `tokens` [N] by exit and rest, on caches of the target that
    holds the others; and by the target."""
    target, first = _opened(parts, parts.engine), _opened(parts, exit_stage(blocks))
    facts = as_decoder(parts.stages[stage].facts)
    rest = RestSession(parts.graph(stage), facts, parts.ports(stage), capacity=SLOTS)
    rest = rest.sibling(target)
    target.reset(1)
    target.prefill([tokens[:PROMPT]])
    expected = target.score(tokens[None, PROMPT:]).logits[0].copy()
    target.reset(1)
    target.prefill([tokens[:PROMPT]])
    new = tokens[PROMPT:].tolist()
    states = first.sibling(target).follow(0, PROMPT, new, len(new)).tap(rest.reads)[0]
    return rest.resume(0, [PROMPT], [states]).logits[0].copy(), expected


def _opened(parts: Parts, stage: str) -> OrtSession:
    return OrtSession(parts.graph(stage), facts_of(parts), parts.ports(stage), capacity=SLOTS)
