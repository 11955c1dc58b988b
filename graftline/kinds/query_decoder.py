"""The kind of host that scores the classes of all places by queries, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graftline.evaluate import Feed
from graftline.facts import Facts, QueryDecoderFacts
from graftline.kinds.kind import NO_BF16, Parts
from graftline.kinds.one_pass import OnePass
from graftline.law import LawRow
from graftline.passes.laws.classes import nearest_to_best
from graftline.ports import Port, by_role
from graftline.roles import CLASSES, LATENTS, SCORES

ROWS = (2, 1)
"""Rows of each feed."""
SIZES = {2: ((16, 24), (24, 16)), 3: ((8, 16, 8), (16, 8, 8))}
"""Places along free axes of an image's and of a volume's features: multiples of what networks
halve."""
OTHER = 7
"""Of a condition whose other sizes are free."""


@dataclass(frozen=True)
class QueryDecoder(OnePass):
    """Features or images in, scores of the classes of all places out, or the classes alone."""

    name: str = "query-decoder"
    output: str = SCORES

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded features and conditions; whole numbers are zeros, of the first of whatever."""
        random, turn = np.random.default_rng(seed), seed % len(ROWS)
        main = by_role(ports, LATENTS, "in")[0]
        sizes = (ROWS[turn], OTHER, *SIZES[len(main.shape) - 2][turn])
        free = {d: size for d, size in zip(main.shape, sizes, strict=True) if isinstance(d, str)}
        feed: Feed = {}
        for port in (p for p in ports if p.direction == "in"):
            dims = [d if isinstance(d, int) else free.get(d, OTHER) for d in port.shape]
            kind = np.dtype(port.dtype)
            values = np.zeros(dims) if kind.kind in "iub" else random.standard_normal(dims)
            feed[port.name] = np.asarray(values).astype(kind)
        return feed

    def _name(self, ports: tuple[Port, ...]) -> str:
        return (by_role(ports, SCORES, "out") or by_role(ports, CLASSES, "out"))[0].name

    def _whole(self, parts: Parts, stage: str) -> LawRow:
        """A stage scores all places as the export does, or gives their best class: where two are as
        near as rounding, either."""
        if by_role(parts.ports(stage), SCORES, "out"):
            return super()._whole(parts, stage)
        if parts.dtype == "bf16":
            return LawRow(stage, "whole", "not_run", NO_BF16)
        facts = parts.facts
        assert isinstance(facts, QueryDecoderFacts)
        comparison = self._rounding(parts, stage, "whole")
        got, expected = self._outputs(parts, stage), self._owed(parts, stage)
        pairs = list(zip(got, expected, strict=True))
        worst = max(nearest_to_best(comparison, CLASSES, *pair) for pair in pairs)
        sizes = " and ".join(f"{list(a.shape)}" for a in got)
        same = sum(int(np.sum(a == b.argmax(1))) for a, b in pairs)
        total = sum(a.size for a in got)
        what = f"{CLASSES} {sizes}, {same} of {total} the export's best"
        return LawRow(stage, "whole", "held", what, worst, comparison.limit)
