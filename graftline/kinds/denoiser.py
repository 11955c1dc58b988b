"""The kind of host that says what of a noisy sample is noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.bundle.reader import Bundle
from graftline.errors import CannotEvaluate, LawBroken
from graftline.evaluate import Feed, oracle_limit, run
from graftline.kinds.kind import Finding, Parts, Proof, Small, Watch
from graftline.law import Evidence, LawRow
from graftline.passes.anchors.reduce import hold_weights, weight_bytes
from graftline.passes.canonical.denoiser import PREDICTION
from graftline.passes.laws.compare import Comparison
from graftline.passes.pipeline.sample import Sample
from graftline.ports import Port, by_role, read_ports
from graftline.raw_ports import read_raw

if TYPE_CHECKING:
    from graftline.models.reference import OwnModel
    from graftline.recipe import Recipe

Array = npt.NDArray[Any]
SIZES = ({"B": 2, "H": 32, "W": 32}, {"B": 1, "H": 32, "W": 64})
"""What the free dimensions of a sample are, in each feed: multiples of what networks halve."""
OTHER = 7
"""Rows of a condition whose number is free."""
STEPS = ((1, 998), (999,))
"""Time steps of the samples of each feed: networks may do otherwise early and late."""


@dataclass(frozen=True)
class Denoiser:
    """A noisy sample and a time step in, a prediction of the sample's size out."""

    name: str = "denoiser"
    front: str = "canonicalize-denoiser"
    recipe: str | None = None

    def front_law(self, raw: ir.Model, canonical: ir.Model) -> LawRow:
        """Predictions of both on the same samples."""
        if large := _too_large(canonical, oracle_limit()):
            return LawRow("canonicalize-denoiser", "neutral", "not_run", large)
        comparison = Comparison("canonicalize-denoiser", "neutral", _dtype(read_ports(canonical)))
        worst, ports = 0.0, read_raw(canonical.metadata_props)
        try:
            for seed in range(len(SIZES)):
                expected = run(raw, feed_of(ports, seed))[by_role(ports, PREDICTION)[0].name]
                got = run(canonical, feed_of(read_ports(canonical), seed))[PREDICTION]
                worst = max(worst, comparison.output(PREDICTION, got, expected))
        except CannotEvaluate as error:  # an operator of the raw graph that only its runtime has
            return LawRow("canonicalize-denoiser", "neutral", "not_run", str(error))
        what = f"predictions of {len(SIZES)} batches are the raw graph's"
        found = Evidence(what, worst, comparison.limit)
        return LawRow.of("canonicalize-denoiser", "neutral", found)

    def small(self, canonical: ir.Model, limit: int) -> Small | str:
        """The whole network: it is not made of blocks that repeat."""
        if large := _too_large(canonical, limit):
            return large
        model = canonical.clone()
        hold_weights(model)
        size = weight_bytes(model)
        return Small(model, feed_of(read_ports(model), 0), 0, size, "the whole network")

    def sample(self, canonical: ir.Model, say: Watch) -> Sample:
        """None: nothing writes samples without a sampler."""
        return Sample({}, {}, say, "a denoiser writes none by itself")

    def engine_of(self, lowered: ir.Model, target: str) -> None:
        """One pass over whole samples: nothing is needed besides the graph."""

    def prove(self, parts: Parts, own: OwnModel | Path | None, gone: str, say: Watch) -> Proof:
        """Predictions for samples of several sizes: the user's own file, the export, the engine."""
        say("proof: the engine against the unmodified export, with the real weights")
        export = _run(parts, "export")
        whole = _same(parts, "whole", parts.target, _run(parts, parts.target), export)
        if not isinstance(own, Path):
            return Proof([LawRow("export", "checkpoint", "not_run", gone), whole])
        say("proof: the export against the checkpoint's own file")
        theirs = _predictions(own, parts.ports("export"))
        return Proof([_same(parts, "checkpoint", "export", export, theirs), whole])

    def prove_stage(self, parts: Parts, stage: str, recipe: Recipe, say: Watch) -> list[LawRow]:
        """No stage but the target is made of a denoiser yet."""
        raise AssertionError(f"a denoiser has no stage '{stage}'")

    def answers(self, bundle: Bundle) -> list[Finding]:
        """Predictions, beside the export's."""
        if gone := bundle.without_source():
            return [Finding(PREDICTION, f"not compared with the export: {gone}", True, "not_run")]
        manifest = bundle.manifest
        parts = Parts(bundle.path, manifest.stages, manifest.target, manifest.dtype)
        try:
            row = _same(
                parts, "whole", parts.target, _run(parts, parts.target), _run(parts, "export")
            )
        except LawBroken as error:
            return [Finding(PREDICTION, str(error), False)]
        return [Finding(PREDICTION, row.text, True, row.status)]

    def alone(self, bundle: Bundle, say: Watch) -> list[LawRow]:
        """None: without the export there is nothing to compare with."""
        return []


def feed_of(ports: tuple[Port, ...], seed: int) -> Feed:
    """Seeded samples, time steps and conditions for the inputs that these ports describe."""
    random, sizes = np.random.default_rng(seed), SIZES[seed % len(SIZES)]
    feed: Feed = {}
    sample = by_role(ports, "sample", "in")[0]
    symbols = dict(zip(map(str, sample.shape), ("B", "C", "H", "W"), strict=True))
    for port in (p for p in ports if p.direction == "in"):
        dims = [
            d if isinstance(d, int) else sizes.get(symbols.get(d, ""), OTHER) for d in port.shape
        ]
        values = random.standard_normal(dims)
        if port.role == "timestep":
            values = np.resize(STEPS[seed % len(STEPS)], dims)
        feed[port.name] = np.asarray(values).astype(np.dtype(port.dtype))
    return feed


def _too_large(model: ir.Model, limit: int) -> str:
    """Why the oracle cannot run the network here, "" when it can."""
    if (size := weight_bytes(model)) <= limit:
        return ""
    room = f"of which the oracle takes {limit / 1e9:.1f} GB here"
    return f"the network weighs {size / 1e9:.1f} GB, {room}"


def _dtype(ports: tuple[Port, ...]) -> str:
    return by_role(ports, PREDICTION, "out")[0].dtype


def _run(parts: Parts, stage: str) -> list[Array]:
    return _predictions(parts.graph(stage), parts.ports(stage))


def _predictions(graph: Path, ports: tuple[Port, ...]) -> list[Array]:
    """What a graph predicts, in ONNX Runtime, for a feed of each size."""
    from graftline.runtimes.ort.graph import open_graph

    session = open_graph(graph, 0)
    name = by_role(ports, PREDICTION, "out")[0].name
    found: list[Any] = [session.run([name], feed_of(ports, n))[0] for n in range(len(SIZES))]
    return [np.asarray(array, np.float32) for array in found]


def _same(parts: Parts, law: str, stage: str, got: list[Array], expected: list[Array]) -> LawRow:
    """Predictions equal a reference's within what the precision of the host rounds."""
    comparison = Comparison(stage, law, _dtype(parts.ports("export")))
    pairs = zip(got, expected, strict=True)
    worst = max(comparison.output(PREDICTION, a, b) for a, b in pairs)
    sizes = " and ".join(f"{list(a.shape)}" for a in got)
    return LawRow(stage, law, "held", f"predictions {sizes}", worst, comparison.limit)
