"""The kind of host that says what of a noisy sample is noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graftline.bundle.store import load_graph
from graftline.evaluate import Array, Feed
from graftline.facts import DenoiserFacts, Facts
from graftline.kinds.kind import Parts, Watch
from graftline.kinds.one_pass import FEEDS, OnePass
from graftline.law import LawRow
from graftline.passes.anchors.denoiser import PREDICTION, TIMESTEP, find_denoiser
from graftline.passes.anchors.roles import OnePass as Found
from graftline.passes.laws.sampled import Network, owed
from graftline.ports import Port, by_role
from graftline.roles import DECODED, DENOISED

SIZES = ({"B": 2, "H": 32, "W": 32}, {"B": 1, "H": 32, "W": 64})
"""What the free dimensions of a sample are, in each feed: multiples of what networks halve."""
OTHER = 7
"""Rows of a condition whose number is free."""
CLASSES = 2
"""Values of a condition of whole numbers."""
STEPS = ((1, 998), (999,))
"""Time steps of the samples of each feed: networks may do otherwise early and late."""


@dataclass(frozen=True)
class Denoiser(OnePass):
    """A noisy sample and a time step in, a prediction of the sample's size out; or what grafts make
    of it: unit noise in, a sample or its image out."""

    name: str = "denoiser"
    output: str = PREDICTION
    most: int = 32 << 20  # numpy takes minutes for more; ONNX Runtime holds it to the export

    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Seeded samples, time steps and conditions."""
        random, sizes = np.random.default_rng(seed), SIZES[seed % len(SIZES)]
        feed: Feed = {}
        inputs = [p for p in ports if p.direction == "in"]
        symbols: dict[str, str] = {}
        for port in [p for p in inputs if len(p.shape) == 4]:
            for dim, meaning in zip(port.shape, ("B", "C", "H", "W"), strict=True):
                symbols.setdefault(str(dim), meaning)
        for port in inputs:
            dims = [
                d if isinstance(d, int) else sizes.get(symbols.get(d, ""), OTHER)
                for d in port.shape
            ]
            values = random.standard_normal(dims)
            if np.dtype(port.dtype).kind in "iub":
                values = random.integers(0, CLASSES, dims)
            if port.role == TIMESTEP:  # one for each sample, whatever its dimension is called
                dims = [d if isinstance(d, int) else sizes["B"] for d in port.shape]
                values = np.resize(STEPS[seed % len(STEPS)], dims)
            feed[port.name] = np.asarray(values).astype(np.dtype(port.dtype))
        return feed

    def prove_forms(self, parts: Parts, say: Watch) -> list[LawRow]:
        """The loop of another number of steps is that of the published sampler."""
        forms = [n for n, s in parts.stages.items() if s.role == "form"]
        for name in forms:
            say(f"proof: {name} against the unmodified export, called step by step")
        return [replace(self._whole(parts, name), law="form") for name in forms]

    def _name(self, ports: tuple[Port, ...]) -> str:
        return self._names(ports)[0]

    def _names(self, ports: tuple[Port, ...]) -> list[str]:
        order = (PREDICTION, DENOISED, DECODED)
        outputs = [p for p in ports if p.direction == "out"]
        own = [p for role in order for p in by_role(outputs, role)]
        return [p.name for p in (*own, *(p for p in outputs if p not in own))]

    def _owed(self, parts: Parts, stage: str) -> list[Array]:
        """The export, by the published loop: called at a fixed time, with guidance, step by step,
        decoded, as the ports and facts of the stage say."""
        ports, facts = parts.ports(stage), parts.stages[stage].facts
        assert isinstance(facts, DenoiserFacts)
        export = parts.ports(parts.export)
        typical = self.feed(export, facts, 0)
        network = _exported(parts.graph(parts.export), export, typical)
        found: list[Array] = []
        for seed in range(FEEDS):
            made = owed(network, ports, facts, self.feed(ports, facts, seed))
            found += [np.asarray(made[name], np.float32) for name in self._names(ports)]
        return found


def _exported(graph: Path, ports: tuple[Port, ...], typical: Feed) -> Network:
    """An export in ONNX Runtime, fed and read by the names that the front gives. What a call leaves
    out is `typical`, by the export's own names."""
    from graftline.runtimes.ort.graph import open_graph

    roles = find_denoiser(load_graph(graph).graph)
    assert isinstance(roles, Found), "the front knew it"
    names = {r.name: r.value.name or "" for r in (*roles.inputs, roles.output, *roles.others)}
    session, outputs = open_graph(graph, 0), (roles.output, *roles.others)

    def call(feed: Feed) -> Feed:
        owners = {r.owner for r in roles.inputs if r.name in feed}
        wanted = {r.name: names[r.name] for r in outputs if r.owner in owners}
        given = typical | {names[name]: array for name, array in feed.items() if name in names}
        made: Any = session.run(list(wanted.values()), given)
        return dict(zip(wanted, made, strict=True))

    (step,) = by_role(ports, TIMESTEP, "in")
    return Network(call, step)
