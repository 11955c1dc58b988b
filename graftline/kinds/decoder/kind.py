"""The kind of host that writes text: a causal decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graftline.bundle.reader import Bundle
from graftline.errors import NotApplicable
from graftline.evaluate import oracle_limit, run
from graftline.facts import decoder_facts
from graftline.kinds.decoder import forms, greedy, proof, stages
from graftline.kinds.decoder.text import sample_of
from graftline.kinds.kind import Finding, Parts, Proof, Small, Watch
from graftline.law import LawRow
from graftline.passes.anchors.reduce import chosen_blocks, hold_weights, reduce_host
from graftline.passes.graph.ports import cache_of
from graftline.passes.laws.front import canonical_is_raw
from graftline.passes.pipeline.sample import Sample
from graftline.ports import read_ports
from graftline.roles import chain_feed

if TYPE_CHECKING:
    from graftline.models.reference import Original
    from graftline.recipe import Recipe

PAIR_BYTES = 2 << 30
"""Bytes of weights up to which the reduced host has two blocks where one would be of every kind."""


@dataclass(frozen=True)
class Decoder:
    """Tokens in, logits of the next token out."""

    name: str = "decoder"
    front: str = "canonicalize | anchors"
    recipe: str = "prompt-lookup"

    def front_law(self, raw: ir.Model, canonical: ir.Model) -> LawRow:
        """Logits of both on the same tokens."""
        found = canonical_is_raw(raw, canonical, run, oracle_limit())
        return LawRow.of("canonicalize", "neutral", found)

    def small(self, canonical: ir.Model, limit: int) -> Small | str:
        """Blocks of each kind, a cut vocabulary, and rows beyond every constant."""
        reduced = reduce_host(canonical)
        if reduced.size > min(limit, PAIR_BYTES):
            reduced = reduce_host(canonical, chosen_blocks(canonical, least=1))
        if reduced.size > limit:
            room = f"of which the oracle takes {limit / 1e9:.1f} GB here"
            return f"{reduced.text} weigh {reduced.size / 1e9:.1f} GB, {room}"
        hold_weights(reduced.model)
        ports, vocabulary = read_ports(reduced.model), decoder_facts(reduced.model).vocabulary
        feed = chain_feed(ports, vocabulary, rows=reduced.rows)
        blocks, size = len(reduced.blocks), reduced.size
        return Small(reduced.model, feed, blocks, size, f"{reduced.text}, {reduced.rows} rows")

    def sample(self, canonical: ir.Model, say: Watch) -> Sample:
        """A text that the host writes."""
        return sample_of(canonical, say)

    def engine_of(self, lowered: ir.Model, target: str) -> None:
        """Sequences are decoded in steps, over a cache."""
        if cache_of(lowered) is None:
            raise NotApplicable(f"{target} decodes over a cache; put kv-cache into --passes")

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Logits of sequences longer than every constant, in every way a session reads them."""
        from graftline.models.reference import OwnNetwork

        assert not isinstance(own, OwnNetwork), "it is of hosts that run once"
        return proof.prove(parts, own, gone, say)

    def prove_forms(self, parts: Parts, say: Watch) -> list[LawRow]:
        """Chains without a mask, and rows of several sequences, are scored as the target does."""
        return forms.prove_forms(parts, say)

    def prove_stage(self, parts: Parts, stage: str, recipe: Recipe, say: Watch) -> list[LawRow]:
        """A fused step is the host's; a sub-model is the host cut there."""
        return stages.prove_stage(parts, stage, recipe, say)

    def answers(self, bundle: Bundle) -> list[Finding]:
        """Greedy tokens."""
        return greedy.answers(bundle)

    def alone(self, bundle: Bundle, engine: str, say: Watch) -> list[LawRow]:
        """The engine's rows against one another."""
        from graftline.runtimes.row_invariance import row_invariance
        from graftline.runtimes.sessions import open_session

        say("the engine's rows against one another")
        session = open_session(bundle, stage=engine)
        prompt = np.random.default_rng(1).integers(0, session.facts.vocabulary, 24)
        return [LawRow.of(engine, "row-invariant", row_invariance(session, prompt).evidence)]
