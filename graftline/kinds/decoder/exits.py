"""The proof of a decoder's exits: its first blocks, and all others from where those leave off."""

from __future__ import annotations

from collections.abc import Iterator
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
from graftline.runtimes.session import Tap
from graftline.tree import Tree

Array = npt.NDArray[Any]
PROMPT, ROWS, SLOTS = 4, 4, 64
"""Rows that the whole target reads first, then rows that an exit and its rest take over."""
BRANCHED = (-1, 0, 0, 1)
"""The parents of these rows in a tree."""


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
    """Logits [rows, V] of the last ROWS of `tokens` [N] by exit and rest, on caches of the target
    that holds the others; and by the target: as a chain, and where both read trees as BRANCHED,
    too."""
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
    first = first.sibling(target)
    states = first.follow(0, PROMPT, new, len(new)).tap(rest.reads)[0]
    got = rest.resume(0, [PROMPT], [states]).logits[0].copy()
    if not rest.supports_trees:
        return got, expected
    tree = Tree(tokens[PROMPT:], np.asarray(BRANCHED, np.int64))
    target.reset(1)
    target.prefill([tokens[:PROMPT]])
    branched = target.score(tokens[None, PROMPT:], tree.depth[None], tree.mask[None]).logits[0]
    expected = np.concatenate([expected, branched])
    target.reset(1)
    target.prefill([tokens[:PROMPT]])
    states = np.concatenate(list(_levels(first, tree, rest.reads)))
    branched = rest.resume_tree(0, PROMPT, states, tree.depth, tree.mask).logits[0]
    return np.concatenate([got, branched]), expected


def _levels(first: OrtSession, tree: Tree, reads: Tap) -> Iterator[Array]:
    """The hidden states [N, H] that leave an exit's blocks, which read a tree depth by depth."""
    yield first.follow(0, PROMPT, tree.token_list[:1]).tap(reads)[0].copy()
    for depth in range(1, int(tree.depth.max()) + 1):
        start, stop = np.searchsorted(tree.depth, (depth, depth + 1)).tolist()
        seen, nodes = tree.mask[start:stop, 1:stop], tree.token_list[start:stop]
        base, place = PROMPT + 1, PROMPT + start
        yield first.follow_level(0, base, place, nodes, None, depth, seen).tap(reads)[0].copy()


def _opened(parts: Parts, stage: str) -> OrtSession:
    return OrtSession(parts.graph(stage), facts_of(parts), parts.ports(stage), capacity=SLOTS)
