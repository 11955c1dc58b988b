"""The kind of host that says what of a noisy sample is noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graftline.bundle.store import load_graph
from graftline.evaluate import Array, Feed
from graftline.facts import DenoiserFacts, Facts
from graftline.kinds.chunks import Walk
from graftline.kinds.kind import Parts, Proof, Watch
from graftline.kinds.named_graph import NamedGraph
from graftline.kinds.one_pass import FEEDS, OnePass
from graftline.law import LawRow
from graftline.passes.anchors.denoiser import PREDICTION, TIMESTEP, find_denoiser
from graftline.passes.anchors.roles import OnePass as Found
from graftline.passes.anchors.skips import SkipCut, halves, skip_cut
from graftline.passes.laws.common import infer_shapes
from graftline.passes.laws.sampled import Call, Network, owed
from graftline.ports import Port, by_role
from graftline.roles import BEGUN, DECODED, DENOISED, SAMPLE

if TYPE_CHECKING:
    from graftline.models.reference import Original

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
            if port.role == BEGUN:  # rows with a chunk before, and without
                values = np.arange(dims[0]) % 2 == 0
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

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Outputs; and of a loop that reuses its encoder's features, how much that changes them."""
        proof = super().prove(parts, own, gone, say)
        if _facts(parts, parts.engine).keys:
            say("proof: how far reused features change the samples")
            proof.laws.append(self._reused(parts))
        drawn = {p.role for p in parts.ports(parts.engine)}
        if {BEGUN, DENOISED} <= drawn and parts.dtype != "bf16":
            say("proof: chunk after chunk against the export, with the real weights")
            proof.laws.append(self._in_chunks(parts))
        return proof

    def _in_chunks(self, parts: Parts) -> LawRow:
        """A sequence of chunks is what the export makes of it."""
        facts, ports = _facts(parts, parts.engine), parts.ports(parts.engine)
        network = self._network(parts)
        walk = Walk(parts, self.feed(ports, facts, 0), lambda f: owed(network, ports, facts, f))
        return walk.law(self._rounding(parts, parts.engine, "chunks"))

    def _reused(self, parts: Parts) -> LawRow:
        """How far an engine's output is from that of the loop that calls all of the network at
        every step: the root mean square of the difference over that of the output."""
        facts = replace(_facts(parts, parts.engine), keys=())
        name = next(p.role for p in parts.ports(parts.engine) if p.direction == "out")
        got, expected = (
            np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
            for arrays in (
                self._outputs(parts, parts.engine), self._by_loop(parts, parts.engine, facts),
            )
        )  # fmt: skip
        apart = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
        what = f"{name} beside the loop whose encoder runs at every step, root mean squares"
        return LawRow(parts.engine, "reuse", "measured", what, apart)

    def _owed(self, parts: Parts, stage: str) -> list[Array]:
        """The export, by the published loop: called at a fixed time, with guidance, step by step,
        decoded, as the ports and facts of the stage say."""
        return self._by_loop(parts, stage, _facts(parts, stage))

    def _by_loop(self, parts: Parts, stage: str, facts: DenoiserFacts) -> list[Array]:
        """The same for a stage of those facts."""
        ports, network = parts.ports(stage), self._network(parts)
        found: list[Array] = []
        for seed in range(FEEDS):
            made = owed(network, ports, facts, self.feed(ports, facts, seed))
            found += [np.asarray(made[name], np.float32) for name in self._names(ports)]
        return found

    def _network(self, parts: Parts) -> Network:
        """The unmodified export, to be called."""
        theirs = parts.ports(parts.export)
        export = Exported.of(parts.graph(parts.export), self.feed(theirs, parts.facts, 0))
        (step,) = by_role(theirs, TIMESTEP, "in")
        return Network(export, step, lambda: export.halves)


def _facts(parts: Parts, stage: str) -> DenoiserFacts:
    facts = parts.stages[stage].facts
    assert isinstance(facts, DenoiserFacts)
    return facts


@dataclass(frozen=True)
class Exported:
    """An export in ONNX Runtime, fed and read by the names that the front gives. What a call leaves
    out is `typical`, by the export's own names."""

    path: Path
    typical: Feed
    roles: Found

    @classmethod
    def of(cls, path: Path, typical: Feed) -> Exported:
        return cls(path, typical, _roles(load_graph(path)))

    @cached_property
    def names(self) -> dict[str, str]:
        """The export's own, by the front's."""
        roles = (*self.roles.inputs, self.roles.output, *self.roles.others)
        return {role.name: role.value.name or "" for role in roles}

    @cached_property
    def graph(self) -> NamedGraph:
        return NamedGraph.of(self.path)

    def __call__(self, feed: Feed) -> Feed:
        """The outputs of those parts whose inputs are fed."""
        outputs = (self.roles.output, *self.roles.others)
        owners = {r.owner for r in self.roles.inputs if r.name in feed}
        wanted = [r.name for r in outputs if r.owner in owners]
        given = self._given({n: v for n, v in feed.items() if n in self.names})
        made = self.graph(given, [self.names[name] for name in wanted])
        return dict(zip(wanted, made.values(), strict=True))

    def _given(self, feed: Feed) -> Feed:
        """By the export's own names, with what is left out."""
        return self.typical | {self.names.get(name, name): v for name, v in feed.items()}

    @cached_property
    def halves(self) -> tuple[Call, Call]:
        """All of a UNet, which also gives its encoder's features, and its decoder."""
        model = load_graph(self.path)
        infer_shapes(model)
        found = _roles(model)
        (sample,) = (r.value for r in found.inputs if r.name == SAMPLE)
        cut = skip_cut(model.graph, sample, found.output.value)
        assert isinstance(cut, SkipCut), "the graph with reused features was made of it"
        whole, decoder = halves(model, cut, self.names[PREDICTION])
        return self._part(whole), self._part(decoder)

    def _part(self, part: ir.Model) -> Call:
        graph, own = NamedGraph.of(part), self.names[PREDICTION]

        def call(feed: Feed) -> Feed:
            made = graph(self._given(feed))
            return {PREDICTION if name == own else name: v for name, v in made.items()}

        return call


def _roles(model: ir.Model) -> Found:
    roles = find_denoiser(model.graph)
    assert isinstance(roles, Found), "the front knew it"
    return roles
