"""What kinds of host have in common that run once: nothing is fed back, and nothing is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.build.engines import is_engine
from graftline.bundle.reader import Bundle
from graftline.errors import CannotEvaluate, LawBroken, NotApplicable
from graftline.evaluate import Feed, oracle_limit, run
from graftline.facts import Facts, read_facts
from graftline.files import told_size
from graftline.kinds.kind import NO_BF16, Finding, Parts, Proof, Small, Watch
from graftline.kinds.named_graph import NamedGraph
from graftline.kinds.own_network import run_of
from graftline.law import Evidence, LawRow
from graftline.passes.anchors.reduce import hold_weights, weight_bytes
from graftline.passes.graph.meaning import World
from graftline.passes.graph.shapes.shapes import Measure
from graftline.passes.laws.compare import TOLERANCE, Comparison
from graftline.passes.pipeline.sample import Sample
from graftline.ports import Port, by_role, read_ports
from graftline.raw_ports import read_raw

if TYPE_CHECKING:
    from graftline.models.reference import Original
    from graftline.recipe import Recipe

Array = npt.NDArray[Any]
FEEDS = 2
"""Feeds that a host and its engine are compared on."""


@dataclass(frozen=True)
class OnePass(ABC):
    """A host that runs once. A kind says its `name`, the role of its `output`, and what it is fed.
    """

    name: str
    output: str
    front: str = "canonicalize-one-pass"
    recipe: str | None = None
    most: int = 1 << 62
    """Bytes of weights that the oracle takes at most, beside what the machine's memory allows."""

    @abstractmethod
    def feed(self, ports: tuple[Port, ...], facts: Facts, seed: int) -> Feed:
        """Values for the inputs that these ports describe, as they are typical; other seeds have
        other sizes where these are free."""

    def front_law(self, raw: ir.Model, canonical: ir.Model) -> LawRow:
        """Outputs of both for the same feeds."""
        if large := _too_large(canonical, min(oracle_limit(), self.most)):
            return LawRow(self.front, "neutral", "not_run", large)
        ports, facts = read_ports(canonical), read_facts(canonical)
        comparison = self._comparison(self.front, "neutral", ports)
        worst, theirs = 0.0, read_raw(canonical.metadata_props)
        outputs = list(zip(self._names(theirs), self._names(ports), strict=True))
        try:
            for seed in range(FEEDS):
                expected = run(raw, self.feed(theirs, facts, seed))
                got = run(canonical, self.feed(ports, facts, seed))
                gaps = [comparison.output(b, got[b], expected[a]) for a, b in outputs]
                worst = max(worst, *gaps)
        except CannotEvaluate as error:  # an operator of the raw graph that only its runtime has
            return LawRow(self.front, "neutral", "not_run", str(error))
        names = " and ".join(name for _, name in outputs)
        what = f"the {names} of {FEEDS} batches is the raw graph's"
        return LawRow.of(self.front, "neutral", Evidence(what, worst, comparison.limit))

    def small(self, canonical: ir.Model, limit: int) -> Small | str:
        """The whole network: whether it is made of blocks that repeat is not known."""
        if large := _too_large(canonical, min(limit, self.most)):
            return large
        model = canonical.clone()
        hold_weights(model)
        feed = self.feed(read_ports(model), read_facts(model), 0)
        return Small(model, feed, 0, weight_bytes(model), "the whole network")

    def sample(self, canonical: ir.Model, say: Watch) -> Sample:
        """None: what it is fed in use is not known."""
        return Sample({}, {}, say, f"a {self.name} writes none by itself")

    def engine_of(self, lowered: ir.Model, target: str) -> None:
        """One run over whole inputs: nothing is needed besides the graph. On a GPU there is room
        for outputs before the run, so that their sizes must follow from those of the inputs."""
        if not is_engine(target):
            return
        ports, values = read_ports(lowered), {v.name: v for v in lowered.graph.inputs}
        feed = self.feed(ports, read_facts(lowered), 0)
        sizes = {values[name]: array.shape for name, array in feed.items()}
        measured = Measure(lowered.graph, World({}), inputs=sizes)
        if odd := [v.name or "" for v in lowered.graph.outputs if measured.of(v) is None]:
            raise NotApplicable(
                f"{target} needs outputs whose sizes follow from those of the inputs; a recogniser "
                "that counts its positions has them with --passes pad-positions", odd,
            )  # fmt: skip

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Outputs for feeds of several sizes: the checkpoint's own network's, the export's, and the
        engine's."""
        say("proof: the engine against the unmodified export, with the real weights")
        whole = self._whole(parts, parts.engine)
        if own is None:
            told = [LawRow(parts.export, "checkpoint", "not_run", gone)] if gone else []
            return Proof([*told, whole])
        say("proof: the export against the checkpoint's own network")
        return Proof([self._checkpoint(parts, own), whole])

    def _checkpoint(self, parts: Parts, own: Original) -> LawRow:
        """The export computes what the checkpoint's own network does, or its file."""
        ports, asked = parts.ports(parts.export), run_of(own)
        feeds = [self.feed(ports, parts.facts, seed) for seed in range(FEEDS)]
        made = asked if isinstance(asked, str) else asked(feeds)
        if isinstance(made, str):
            return LawRow(parts.export, "checkpoint", "not_run", made)
        names = self._names(ports)
        expected = [np.asarray(one[name], np.float32) for one in made for name in names]
        got = self._run(parts.graph(parts.export), ports, parts.facts, names)
        return self._same(parts, "checkpoint", parts.export, got, expected)

    def prove_forms(self, parts: Parts, say: Watch) -> list[LawRow]:
        """A host that runs once has one step and one form of it."""
        return []

    def prove_stage(self, parts: Parts, stage: str, recipe: Recipe, say: Watch) -> list[LawRow]:
        """Its bundle has no stage but the engine."""
        raise AssertionError(f"a {self.name} has no stage '{stage}'")

    def answers(self, bundle: Bundle) -> list[Finding]:
        """Outputs, beside the export's."""
        if gone := bundle.without_source():
            what = f"not compared with the export: {gone}"
            return [Finding(self.output, what, True, "not_run")]
        manifest = bundle.manifest
        parts = Parts(bundle.path, manifest.stages, manifest.target, manifest.target)
        try:
            row = self._whole(parts, parts.engine)
        except LawBroken as error:
            return [Finding(self.output, str(error), False)]
        return [Finding(self.output, row.text, True, row.status)]

    def alone(self, bundle: Bundle, engine: str, say: Watch) -> list[LawRow]:
        """None: without the export there is nothing to compare with."""
        return []

    def _name(self, ports: tuple[Port, ...]) -> str:
        return by_role(ports, self.output, "out")[0].name

    def _names(self, ports: tuple[Port, ...]) -> list[str]:
        """The outputs that are compared, the one that the host is for first."""
        return [self._name(ports)]

    def _comparison(self, graft: str, law: str, ports: tuple[Port, ...]) -> Comparison:
        """Within what the precision of the output rounds."""
        name = self._name(ports)
        return Comparison(graft, law, next(p.dtype for p in ports if p.name == name))

    def _rounding(self, parts: Parts, stage: str, law: str) -> Comparison:
        """Between a stage and its export: within what the precision of either rounds."""
        found = self._comparison(stage, law, parts.ports(parts.export))
        own = parts.stages[stage].facts.dtype
        return replace(found, dtype=max(found.dtype, own, key=TOLERANCE.__getitem__))

    def _whole(self, parts: Parts, stage: str) -> LawRow:
        """A stage computes what it owes to the export."""
        if parts.dtype == "bf16":
            return LawRow(stage, "whole", "not_run", NO_BF16)
        got = self._outputs(parts, stage)
        return self._same(parts, "whole", stage, got, self._owed(parts, stage))

    def _owed(self, parts: Parts, stage: str) -> list[Array]:
        """What a stage owes for every feed: what the export makes of it."""
        return self._outputs(parts, parts.export)

    def _outputs(self, parts: Parts, stage: str) -> list[Array]:
        ports = parts.ports(stage)
        return self._run(parts.graph(stage), ports, parts.facts, self._names(ports))

    def _run(
        self, graph: Path, ports: tuple[Port, ...], facts: Facts, names: list[str]
    ) -> list[Array]:
        """What a graph makes of every feed, in ONNX Runtime."""
        run = NamedGraph.of(graph)
        made = [run(self.feed(ports, facts, seed), names) for seed in range(FEEDS)]
        return [np.asarray(one[name], np.float32) for one in made for name in names]

    def _same(
        self, parts: Parts, law: str, stage: str, got: list[Array], expected: list[Array]
    ) -> LawRow:
        """Outputs equal a reference's."""
        comparison = self._rounding(parts, stage, law)
        pairs = zip(got, expected, strict=True)
        ports = parts.ports(stage)
        what = next(p.role for p in ports if p.name == self._name(ports))
        worst = max(comparison.output(what, a, b) for a, b in pairs)
        sizes = " and ".join(f"{list(a.shape)}" for a in got)
        return LawRow(stage, law, "held", f"{what} {sizes}", worst, comparison.limit)


def _too_large(model: ir.Model, limit: int) -> str:
    """Why the oracle cannot run the network here, "" when it can."""
    if (size := weight_bytes(model)) <= limit:
        return ""
    room = f"of which the oracle takes {told_size(limit)} here"
    return f"the network weighs {told_size(size)}, {room}"
