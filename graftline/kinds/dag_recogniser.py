"""The kind of host that writes a text as a path through the vertices of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graftline.evaluate import Array, Feed
from graftline.facts import DagRecogniserFacts, Facts
from graftline.kinds.kind import Parts
from graftline.kinds.named_graph import NamedGraph
from graftline.kinds.one_pass import FEEDS
from graftline.kinds.recogniser import ROWS, Recogniser
from graftline.law import LawRow
from graftline.owners import TARGET
from graftline.passes.anchors.denoiser import DECODER
from graftline.passes.laws.paths import Call, owed
from graftline.ports import Port
from graftline.roles import COUNTS, LATENTS, SCORES, STATES

POSITIONS = 12
"""Places of a decoder's own rows in a feed."""


@dataclass(frozen=True)
class DagRecogniser(Recogniser):
    """A signal in; the scores, transitions and states of vertices out, or what grafts make of them:
    those of a path, and what a decoder makes of its states."""

    name: str = "dag-recogniser"

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """A seeded signal; and, for a decoder beside, seeded states."""
        random, rows = np.random.default_rng(seed), ROWS[seed % len(ROWS)]
        own = tuple(p for p in ports if p.owner == TARGET)
        feed = super().feed(own, facts, seed)
        for port in [p for p in ports if p.direction == "in" and p.owner == DECODER]:
            values = POSITIONS - np.arange(rows)
            if port.role == LATENTS:
                free = (rows, POSITIONS)
                dims = [d if isinstance(d, int) else free[n] for n, d in enumerate(port.shape)]
                values = random.standard_normal(dims)
            feed[port.name] = values.astype(np.dtype(port.dtype))
        return feed

    def _names(self, ports: tuple[Port, ...]) -> list[str]:
        """All outputs, the scores first and how many positions of each row count next."""
        outputs = [p for p in ports if p.direction == "out"]
        order = (SCORES, COUNTS)
        return [p.name for p in sorted(outputs, key=lambda p: (*order, p.role).index(p.role))]

    def _whole(self, parts: Parts, stage: str) -> LawRow:
        """A stage gives what lies on the paths that the plain form finds of the export's vertices,
        and what the export's decoder makes of it; of as many positions as both score."""
        facts, ports = parts.stages[stage].facts, parts.ports(stage)
        assert isinstance(facts, DagRecogniserFacts)
        if facts.search is None:
            return super(Recogniser, self)._whole(parts, stage)
        names, got = self._names(ports), self._outputs(parts, stage)
        theirs, expected = parts.ports(parts.export), list[Array]()
        call = _caller(parts.graph(parts.export), theirs)
        for seed in range(FEEDS):
            made = owed(call, self.feed(theirs, facts, seed), names, facts.search, stage)
            expected += [np.asarray(made[name], np.float32) for name in names]
        for place, (one, two) in enumerate(zip(got, expected, strict=True)):
            if names[place % len(names)] in (SCORES, STATES):  # an engine may be made for others
                most = min(one.shape[1], two.shape[1])
                got[place], expected[place] = one[:, :most], two[:, :most]
        return self._same(parts, "whole", stage, got, expected)


def _caller(export: Path, ports: tuple[Port, ...]) -> Call:
    """What runs an export on a feed by its own names, some of which are given by the front's
    instead, and gives its outputs by the front's."""
    graph = NamedGraph.of(export)
    inputs = {_canonical(p): p for p in ports if p.direction == "in"}
    outputs = {_canonical(p): p.name for p in ports if p.direction == "out"}

    def call(feed: Feed) -> Feed:
        own = {inputs[n].name: v.astype(inputs[n].dtype) for n, v in feed.items() if n in inputs}
        made = graph(feed | own, outputs.values())
        return dict(zip(outputs, made.values(), strict=True))

    return call


def _canonical(port: Port) -> str:
    return port.role if port.owner == TARGET else f"{port.owner}.{port.role}"
