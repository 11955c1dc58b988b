"""Pipelines run on an exported graph: structural laws on all of it, numeric ones on a reduced host.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graftline.build.plan import Plan
from graftline.draft import depth_stage
from graftline.evaluate import oracle_limit
from graftline.facts import decoder_facts, read_facts
from graftline.kinds import kind_of
from graftline.kinds.kind import Kind
from graftline.law import LawRow, summary
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.tree_mask import TreeMask
from graftline.passes.laws.common import STRUCTURAL
from graftline.passes.lower.ort.pack_rows import PackRows, unpackable
from graftline.passes.pipeline.pipeline import PassReport
from graftline.passes.pipeline.sample import SAMPLE, Sample
from graftline.recipe import FUSED

Watch = Callable[[str], None]
SEQUENCES = (2, 4, 8)
"""Sequences whose rows go into one call."""
CHAINS, ROWS = "chains", "rows"
"""Names of stages: a step without a mask, and (with a number) one of several sequences."""
COLLECTED = 256 << 20
"""Bytes of a reduced host's weights that are worth a full garbage collection: graphs are cycles."""


@dataclass
class Compiled:
    """The graphs of one run of the pipeline, and what every pass reported."""

    canonical: ir.Model
    lowered: ir.Model
    pipeline: str
    reports: list[PassReport]
    notes: list[LawRow] = field(default_factory=list[LawRow])

    @property
    def laws(self) -> list[LawRow]:
        """Every law that was checked."""
        return [row for report in self.reports for row in report.laws] + self.notes

    def beyond(self, other: Compiled) -> Compiled:
        """What was done and checked here, and not on the way to `other`."""
        done = {r.text for r in other.reports}
        checked = {(row.graft, row.law) for row in other.notes}
        reports = [r for r in self.reports if r.text not in done]
        notes = [row for row in self.notes if (row.graft, row.law) not in checked]
        return replace(self, reports=reports, notes=notes)


@dataclass(frozen=True)
class CompiledPlan:
    """All graphs of a plan: the target's, the other forms of its step by name, its fused step's,
    and its sub-models' by their blocks."""

    target: Compiled
    forms: Mapping[str, Compiled]
    fused: Compiled | None
    cuts: Mapping[int, Compiled]

    def beside(self) -> dict[str, Compiled]:
        """Those beside the target, by the names of their stages."""
        fused = {} if self.fused is None else {FUSED: self.fused}
        cuts = {depth_stage(blocks): cut for blocks, cut in self.cuts.items()}
        return {**self.forms, **fused, **cuts}


def compile_plan(host: ir.Model, plan: Plan, say: Watch) -> CompiledPlan:
    """Run every pipeline of the plan on an exported graph."""
    compiler = Compiler(host, say)
    target = compiler.compile(plan.text)
    fused: Compiled | None = None
    if plan.fused is not None:
        say("the fused step: the same passes, then drafting and verification in the graph")
        fused = compiler.compile(plan.fused)
    cuts: dict[int, Compiled] = {}
    for blocks, text in plan.cuts:
        say(f"its first {blocks} of {decoder_facts(host).layers} blocks")
        cuts[blocks] = compiler.compile(text)
    return CompiledPlan(target, compile_forms(compiler, target, plan), fused, cuts)


def compile_forms(compiler: Compiler, target: Compiled, plan: Plan) -> dict[str, Compiled]:
    """The other forms of a step on ONNX Runtime's CPU provider: of chains, without a mask, where
    the target takes one; and of the chains of several sequences, where their attention allows it.

    Their passes are the target's but for the mask, whose laws were checked there; each form is
    compared with the target by its own law, with the real weights (`Kind.prove_stage`).
    """
    found: dict[str, Compiled] = {}
    if not plan.forms:
        return found
    pipeline = Pipeline.parse(target.pipeline, GRAFTS)
    chains = Pipeline(tuple(g for g in pipeline.grafts if not isinstance(g, TreeMask)))
    base = target
    if chains != pipeline:
        compiler.say("its step for chains: the same passes, without the mask")
        base = found[CHAINS] = compiler.structural(str(chains))
    if why := unpackable(base.lowered):
        compiler.say(f"the rows of several sequences do not go into one call: {why}")
        return found
    compiler.say("its steps for the rows of several sequences")
    for count in SEQUENCES:
        packing = PackRows(sequences=count)
        found[f"{ROWS}-{count}"] = compiler.further(base, Pipeline((packing,)))
    return found


def compile_graph(raw: ir.Model, text: str, say: Watch) -> Compiled:
    """Run one pipeline on an exported graph."""
    return Compiler(raw, say).compile(text)


@dataclass
class Canonical:
    """What the front made of an exported graph, and what was checked on the way."""

    model: ir.Model
    reports: list[PassReport]
    law: LawRow
    sample: Sample | None = None
    """A text that the host writes, once a pass asks for it."""


@dataclass
class Compiler:
    """Runs pipelines on one exported graph. What they have in common is made once: the canonical
    host, the text that it writes, and what passes keep of it (how each weight is rounded)."""

    raw: ir.Model
    say: Watch
    _fronts: dict[str, Canonical] = field(default_factory=dict[str, Canonical])

    @property
    def kind(self) -> Kind:
        """Of the host."""
        return kind_of(read_facts(self.raw))

    def compile(self, text: str) -> Compiled:
        """Run a pipeline: structural laws on all of the graph, numeric laws on a small host of the
        same structure."""
        pipeline = Pipeline.parse(text, GRAFTS)
        start, rest = self.canonical(pipeline), pipeline.of("graft", "fuse", "lower")
        model = start.model.clone()
        notes = [start.law, *numeric_laws(self.kind, model, rest, self.say)]
        if any(graft.calibrates for graft in rest.grafts):
            model.meta[SAMPLE] = self.sample(start)
        reports = start.reports + rest.of("graft", "fuse").run(model)
        canonical = model.clone()
        reports += rest.of("lower").run(model)
        model.meta.pop(SAMPLE, None)
        canonical.meta.pop(SAMPLE, None)
        return Compiled(canonical, model, str(pipeline), reports, notes)

    def structural(self, text: str) -> Compiled:
        """Run a pipeline with the structural laws alone."""
        pipeline = Pipeline.parse(text, GRAFTS)
        start = self.canonical(pipeline)
        model = start.model.clone()
        rest = pipeline.of("graft", "fuse", "lower")
        if any(graft.calibrates for graft in rest.grafts):
            model.meta[SAMPLE] = self.sample(start)
        reports = start.reports + rest.run(model)
        model.meta.pop(SAMPLE, None)
        return Compiled(start.model, model, str(pipeline), reports)

    def further(self, made: Compiled, more: Pipeline) -> Compiled:
        """More passes on a lowered graph, with the structural laws alone."""
        model = made.lowered.clone()
        reports = made.reports + more.run(model)
        text = f"{made.pipeline} | {more}"
        return Compiled(made.canonical, model, text, reports, made.notes)

    def canonical(self, pipeline: Pipeline) -> Canonical:
        """The host after the front of a pipeline."""
        front = pipeline.of("front")
        if str(front) not in self._fronts:
            model = self.raw.clone()
            reports = front.run(model, watch=_told(self.say))
            self.say("laws: the canonical host against the raw graph")
            law = self.kind.front_law(self.raw, model)
            self._fronts[str(front)] = Canonical(model, reports, law)
        return self._fronts[str(front)]

    def sample(self, start: Canonical) -> Sample:
        """The text of a canonical host, and how weights were rounded for it so far."""
        if start.sample is None:
            start.sample = self.kind.sample(start.model, self.say)
        return start.sample


def numeric_laws(kind: Kind, canonical: ir.Model, rest: Pipeline, say: Watch) -> list[LawRow]:
    """The laws of every graft behind the front, on a small host, which any machine holds."""
    small = kind.small(canonical, oracle_limit())
    if isinstance(small, str):
        say(f"laws: the numeric laws do not run: {small}")
        return [LawRow("pipeline", "neutral", "not_run", small)]
    say(f"laws: the oracle runs every graft on {small.told}")
    reports = rest.within(small.blocks).run(small.model, small.feed, watch=_told(say))
    rows = [row for report in reports for row in report.laws if row.law not in STRUCTURAL]
    told, size = small.told, small.size
    del small, reports
    if size > COLLECTED:
        gc.collect()
    return [replace(row, what=f"{row.what}; {told}") for row in rows]


def _told(say: Watch) -> Callable[[PassReport], None]:
    def tell(report: PassReport) -> None:
        count = f"{report.nodes_before} -> {report.nodes_after} nodes"
        say(f"{report.text}: {count}, laws: {summary(report.laws)}, {report.seconds:.1f} s")

    return tell
