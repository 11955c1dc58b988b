"""The kind of host that drafts: parallel heads over the last hidden state of a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Feed, run
from graftline.facts import DraftHeadFacts, Facts, read_facts
from graftline.kinds.kind import NO_BF16, Parts, Proof, Watch
from graftline.kinds.one_pass import Array, OnePass
from graftline.law import Evidence, LawRow
from graftline.nearness import NEARBY, spread_gaps
from graftline.passes.grafts.head_parts import head_parts
from graftline.ports import Port, by_role, read_ports
from graftline.roles import HEADS_IDS, HEADS_LOGITS, HEADS_TOPK, LAST

if TYPE_CHECKING:
    from graftline.models.reference import Original

SIZES = ((2, 5), (3, 1))
"""Sequences and rows of each feed; a step asks for one row of each."""


@dataclass(frozen=True)
class DraftHead(OnePass):
    """Hidden states [B, N, H] in, and for some the tokens drafted behind them; for each the logits
    of tokens further on."""

    name: str = "draft-head"
    output: str = HEADS_LOGITS
    front: str = ""

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded states of the size that a norm gives them, then the tokens behind each."""
        assert isinstance(facts, DraftHeadFacts)
        random, feed = np.random.default_rng(seed), Feed()
        for port in sorted((p for p in ports if p.direction == "in"), key=lambda p: p.role):
            shape = (*SIZES[seed % len(SIZES)], *map(int, port.shape[2:]))
            if port.role in ("tokens", LAST):
                feed[port.name] = random.integers(0, facts.vocabulary, shape, dtype=np.int64)
            else:
                feed[port.name] = random.standard_normal(shape).astype(np.dtype(port.dtype))
        return feed

    def front_law(self, raw: ir.Model, canonical: ir.Model) -> LawRow:
        """The graph, which was written and not exported, is the heads' formula in numpy."""
        ports, facts = read_ports(raw), read_facts(raw)
        feed, comparison = self.feed(ports, facts, 0), self._comparison("export", "formula", ports)
        parts = head_parts(raw)
        assert parts is not None
        expected = parts.formula(*feed.values())
        gap = comparison.output(self.output, run(raw, feed)[self._name(ports)], expected)
        what = f"{facts.told()}: its formula, head by head"
        return LawRow.of("export", "formula", Evidence(what, gap, comparison.limit))

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Logits against the published heads', and candidates against the engine's own logits."""
        if parts.dtype == "bf16":
            return Proof([LawRow(parts.engine, "whole", "not_run", NO_BF16)])
        found = super().prove(parts, own, "", say)
        return replace(found, laws=[*found.laws, self._best(parts)])

    def _same(
        self, parts: Parts, law: str, stage: str, got: list[Array], expected: list[Array]
    ) -> LawRow:
        """Logits equal a reference's; those of quantized weights must be near it."""
        if parts.dtype not in NEARBY:
            return super()._same(parts, law, stage, got, expected)
        rows = [
            spread_gaps(*(array.reshape(-1, array.shape[-1]) for array in pair))
            for pair in zip(got, expected, strict=True)
        ]
        off, most = float(np.mean(np.concatenate(rows))), NEARBY[parts.dtype]
        if not off <= most:
            by = f"{off:.2g} of their spread from the published heads, above {most:g}"
            raise LawBroken(stage, law, f"{parts.dtype} logits", by)
        what = f"{self.output} near the published heads', as {parts.dtype} weights are"
        return LawRow(stage, law, "held", what, off, most)

    def _best(self, parts: Parts) -> LawRow:
        """Law `best`: the candidates of every head are its largest logits, and in their order."""
        from graftline.runtimes.ort.graph import open_graph

        ports, most = parts.ports(parts.engine), 0
        session = open_graph(parts.graph(parts.engine), 0)
        roles = HEADS_LOGITS, HEADS_IDS, HEADS_TOPK
        names = [by_role(ports, role, "out")[0].name for role in roles]
        for seed in range(len(SIZES)):
            answer: Any = session.run(names, self.feed(ports, parts.facts, seed))
            logits, ids, values = answer
            most = ids.shape[-1]
            largest = -np.sort(-logits, axis=-1)[..., :most]
            same = np.array_equal(np.take_along_axis(logits, ids, -1), values)
            if not same or not np.array_equal(values, largest):
                raise LawBroken(parts.engine, "best", HEADS_IDS, "are not the largest logits")
            if np.any(np.diff(np.sort(ids, axis=-1)) == 0):
                raise LawBroken(parts.engine, "best", HEADS_IDS, "name one token twice")
        return LawRow(parts.engine, "best", "held", f"the best {most} of each head, by its logits")
