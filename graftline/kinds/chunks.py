"""What a bundle that draws chunk after chunk owes beside one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftline.errors import LawBroken
from graftline.evaluate import Array, Feed
from graftline.kinds.kind import Parts
from graftline.law import LawRow
from graftline.passes.laws.chunked import PAST_LATENTS
from graftline.passes.laws.compare import Comparison
from graftline.ports import by_role
from graftline.roles import BEGUN, DENOISED, FRESH, LATENTS, NOISE, PAST
from graftline.runtimes.one_pass.chunked import seed_of
from graftline.runtimes.one_pass.feeding import feed_of, keyword

if TYPE_CHECKING:
    from graftline.runtimes.one_pass.engine import DecodeEngine

COUNT = 3
"""Chunks of the sequence that is compared."""
SEED = 5


@dataclass(frozen=True)
class Walk:
    """The published walk: `owed(feed)` is what one call owes to the export, state by state."""

    parts: Parts
    feed: Feed
    owed: Callable[[Feed], Feed]

    def law(self, comparison: Comparison) -> LawRow:
        """Law chunks: a sequence at once and piece by piece is the export's, called step by step
        for each chunk, which is given the one before. Raises LawBroken."""
        stage = self.parts.engine
        engine, latents = self._engine(), self._latents()
        given: dict[str, Any] = {keyword(n): self.feed[n] for n in self._given()}
        one, rest = np.split(latents, [latents.shape[1] // COUNT], axis=1)
        pieces = list(engine.stream_decode(iter([one, rest]), seed=SEED, **given))
        ways = {"at once": engine.decode(latents, seed=SEED, **given),
                "in pieces": np.concatenate(pieces, axis=-1)}  # fmt: skip
        if not np.array_equal(ways["at once"], ways["in pieces"]):
            raise LawBroken(stage, "chunks", "'in pieces'", "not the same as at once")
        expected, worst = self._walked(engine, latents), 0.0
        for way, made in ways.items():
            worst = max(worst, comparison.output(f"{DENOISED} {way}", made, expected))
        what = f"{COUNT} chunks, at once and in pieces, are the export's, each behind the last"
        return LawRow(stage, "chunks", "held", what, worst, comparison.limit)

    def _engine(self) -> DecodeEngine:
        from graftline.runtimes.one_pass.engine import DecodeEngine
        from graftline.runtimes.ort.graph import open_graph

        stage = self.parts.stages[self.parts.engine]
        session = open_graph(self.parts.graph(self.parts.engine), 0)
        return DecodeEngine(self.parts.folder, stage.facts, stage.ports, (), session)

    def _given(self) -> list[str]:
        """The conditions, by the names of ports."""
        ports = self.parts.ports(self.parts.engine)
        own = {p.name for p in ports if p.role == LATENTS or p.state}
        drawn = {p.name for p in ports if p.role in (NOISE, FRESH)}
        return [p.name for p in ports if p.direction == "in" and p.name not in own | drawn]

    def _latents(self) -> Array:
        """Of all chunks."""
        (port,) = by_role(self.parts.ports(self.parts.engine), LATENTS, "in")
        one = self.feed[port.name]
        parts = [np.roll(one, number, axis=-1) * (1 + number) for number in range(COUNT)]
        return np.concatenate(parts, axis=1, dtype=one.dtype)

    def _walked(self, engine: DecodeEngine, latents: Array) -> Array:
        """The samples that the export makes, chunk after chunk."""
        conditions = {keyword(n): self.feed[n] for n in self._given()}
        held, made = Feed(), list[Array]()
        for number, chunk in enumerate(np.split(latents, COUNT, axis=1)):
            feed = feed_of(engine.ports, engine.names, chunk, conditions, seed_of(SEED, number))
            one = self.owed(feed | held)
            held = {PAST: one[DENOISED], PAST_LATENTS: chunk, BEGUN: np.ones(len(chunk), np.bool_)}
            made.append(one[DENOISED])
        return np.concatenate(made, axis=-1)
