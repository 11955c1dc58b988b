"""The kind of host that scores the tokens of a canvas, of which some are chosen at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graftline.evaluate import Array, Feed
from graftline.facts import CanvasFacts, Facts
from graftline.kinds.kind import Parts, Proof, Watch
from graftline.kinds.named_graph import NamedGraph
from graftline.kinds.one_pass import OnePass
from graftline.law import LawRow
from graftline.passes.grafts.canvas_cache import poisoned, some_positions, step_of
from graftline.ports import Port, by_role
from graftline.roles import CANVAS, CHOSEN, KEPT, SCORES

if TYPE_CHECKING:
    from graftline.models.reference import Original

ROWS = (2, 1)
"""Rows of each feed."""
OTHER = 7
"""Rows of a condition whose number is free."""
CLASSES = 2
"""Values of a condition of whole numbers."""


@dataclass(frozen=True)
class Canvas(OnePass):
    """A canvas of tokens in, scores of the tokens of every position out."""

    name: str = "canvas"
    output: str = SCORES

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded tokens, half of them masked where the mask is known, and conditions; all positions
        are computed, over what nothing may be read of."""
        assert isinstance(facts, CanvasFacts)
        random, rows = np.random.default_rng(seed), ROWS[seed % len(ROWS)]
        canvas = by_role(ports, CANVAS, "in")[0]
        batch = canvas.shape[0]
        rows = batch if isinstance(batch, int) else rows
        feed: Feed = {}
        for port in (p for p in ports if p.direction == "in" and p.role not in (CHOSEN, KEPT)):
            free = {batch: rows, canvas.shape[1]: facts.positions}
            dims = [d if isinstance(d, int) else free.get(d, OTHER) for d in port.shape]
            kind = np.dtype(port.dtype)
            values = random.standard_normal(dims)
            if port is canvas:
                values = random.integers(0, facts.vocabulary, (rows, facts.positions))
                if facts.mask is not None:
                    values = np.where(random.random(values.shape) < 0.5, facts.mask, values)
            elif kind.kind in "iub":
                values = random.integers(0, CLASSES, dims)
            feed[port.name] = np.asarray(values).astype(kind)
        at = np.tile(np.arange(facts.positions, dtype=np.int64), (rows, 1))
        return feed | {p.name: at for p in by_role(ports, CHOSEN)} | poisoned(ports, rows)

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Scores; and those of some positions over what is kept of all."""
        proof = super().prove(parts, own, gone, say)
        if by_role(parts.ports(parts.engine), KEPT) and parts.dtype != "bf16":
            say("proof: steps of some positions against the export, with the real weights")
            proof.laws += self._light(parts)
        return proof

    def _light(self, parts: Parts) -> list[LawRow]:
        """Law light: a step of some positions over what is kept of the same canvas scores them as
        the export does. And how far its scores are from the export's where these positions have
        other tokens than what is kept is of."""
        ports, facts = parts.ports(parts.engine), parts.facts
        theirs = parts.ports(parts.export)
        run, host = (NamedGraph.of(parts.graph(one)) for one in (parts.engine, parts.export))
        feed, own = self.feed(ports, facts, 0), self.feed(theirs, facts, 0)
        at = some_positions(*feed[CANVAS].shape)
        other = feed[CANVAS].copy()
        np.put_along_axis(other, at, np.roll(np.take_along_axis(other, at, 1), 1, 1), 1)
        kept, found = run(feed), list[tuple[Array, Array]]()
        (canvas,), scores = by_role(theirs, CANVAS, "in"), self._name(theirs)
        for tokens in (feed[CANVAS], other):
            made = run(step_of(ports, feed | {CANVAS: tokens}, at, kept))[SCORES]
            whole = host(own | {canvas.name: tokens})[scores]
            found.append((made, np.take_along_axis(whole, at[..., None], axis=1)))
        row = self._same(parts, "light", parts.engine, [found[0][0]], [found[0][1]])
        got, expected = (np.asarray(array, np.float64) for array in found[1])
        apart = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
        what = f"{SCORES} of changed positions beside a full step's, root mean squares"
        return [row, LawRow(parts.engine, "reuse", "measured", what, apart)]
