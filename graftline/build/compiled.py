"""Pipelines run on an exported graph: structural laws on all of it, numeric ones on a reduced host.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graftline.build.plan import Plan
from graftline.evaluate import oracle_limit
from graftline.facts import read_facts
from graftline.kinds import kind_of
from graftline.kinds.kind import Kind
from graftline.law import LawRow, summary
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.block_copy import BLOCK_GRAPH
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.laws.common import STRUCTURAL
from graftline.passes.lower.ort.pack_rows import PackRows, unpackable
from graftline.passes.pipeline.pipeline import PassReport
from graftline.passes.pipeline.sample import SAMPLE, Sample

Watch = Callable[[str], None]
COLLECTED = 256 << 20
"""Bytes of a reduced host's weights that are worth a full garbage collection: graphs are cycles."""


@dataclass
class Compiled:
    """The graphs of one run of the pipeline, and what every pass reported behind the front that it
    began with."""

    canonical: ir.Model
    lowered: ir.Model
    pipeline: str
    start: Canonical
    reports: list[PassReport]
    notes: list[LawRow] = field(default_factory=list[LawRow])

    @property
    def laws(self) -> list[LawRow]:
        """Every law that was checked behind the front."""
        return [row for report in self.reports for row in report.laws] + self.notes

    def beyond(self, other: Compiled) -> Compiled:
        """What was done and checked here, and not on the way to `other`."""
        done = {r.text for r in other.reports}
        checked = {(row.graft, row.law) for row in other.notes}
        reports = [r for r in self.reports if r.text not in done]
        notes = [row for row in self.notes if (row.graft, row.law) not in checked]
        return replace(self, reports=reports, notes=notes)


def compile_stages(compilers: Mapping[str, Compiler], plan: Plan) -> dict[str, Compiled]:
    """Run the pipeline of every stage of the plan on the exported graph that it is made of, by that
    graph's compiler, which keeps what stages have in common. A form of a step that the host does
    not allow is left out."""
    made: dict[str, Compiled] = {}
    for stage in plan.stages:
        compiler = compilers[stage.made_of]
        if stage.role == "fused" and (block := plan.block) is not None:
            compiler.block = compilers[block.made_of].block_of(block.text)
        if stage.says:
            compiler.say(stage.says)
        if stage.role != "form":
            made[stage.name] = compiler.compile(stage.text)
        elif (form := compiler.form(stage.text)) is not None:
            made[stage.name] = form
    return made


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

    @property
    def laws(self) -> list[LawRow]:
        """Every law that was checked."""
        return [row for report in self.reports for row in report.laws] + [self.law]


@dataclass(frozen=True)
class Block:
    """The graph of a draft block that a pass puts into a target's, and a small one that goes with
    a small target; None where there is none that the oracle takes."""

    whole: ir.Model
    small: ir.Model | None


@dataclass
class Compiler:
    """Runs pipelines on one exported graph. What they have in common is made once: the canonical
    host, the text that it writes, and what passes keep of it (how each weight is rounded)."""

    raw: ir.Model
    say: Watch
    heads: ir.Model | None = None
    """The draft heads that a pass may put on it."""
    block: Block | None = None
    """The draft block that a pass may put into it."""
    _fronts: dict[str, Canonical] = field(default_factory=dict[str, Canonical])
    _made: dict[str, Compiled] = field(default_factory=dict[str, Compiled])
    """What may be the base of a form, by its pipeline."""

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
        carried = self._carried(small=True)
        notes = numeric_laws(self.kind, model, rest, self.say, carried)
        self._equip(model, start, rest)
        reports = rest.of("graft", "fuse").run(model)
        canonical = model.clone()
        reports += rest.of("lower").run(model)
        _strip(model)
        made = Compiled(canonical, model, str(pipeline), start, reports, notes)
        self._made[str(pipeline)] = made
        return made

    def form(self, text: str) -> Compiled | None:
        """Another form of a step: the engine's passes but for its mask, whose laws were checked on
        the engine's way, and packing. None, and why is told, where the host cannot be packed.

        The form owes a law of its own, with the real weights (`Kind.prove_forms`).
        """
        grafts = Pipeline.parse(text, GRAFTS).grafts
        packing = Pipeline(tuple(g for g in grafts if isinstance(g, PackRows)))
        rest = Pipeline(tuple(g for g in grafts if not isinstance(g, PackRows)))
        base = self._made.get(str(rest)) or self._structural(rest)
        if not packing.grafts:
            return base
        if why := unpackable(base.lowered):
            self.say(f"not made, each sequence is a call of its own: {why}")
            return None
        model = base.lowered.clone()
        reports = base.reports + packing.run(model)
        return Compiled(base.canonical, model, text, base.start, reports, base.notes)

    def _structural(self, pipeline: Pipeline) -> Compiled:
        """Run a pipeline with the structural laws alone."""
        start, rest = self.canonical(pipeline), pipeline.of("graft", "fuse", "lower")
        model = start.model.clone()
        self._equip(model, start, rest)
        reports = rest.run(model)
        _strip(model)
        made = Compiled(start.model, model, str(pipeline), start, reports)
        self._made[str(pipeline)] = made
        return made

    def _equip(self, model: ir.Model, start: Canonical, passes: Pipeline) -> None:
        """Hand over what passes need besides the graph."""
        if any(graft.calibrates for graft in passes.grafts):
            model.meta[SAMPLE] = self.sample(start)
        model.meta.update(self._carried(small=False))

    def _carried(self, small: bool) -> dict[str, ir.Model]:
        """The graphs of heads that passes read, by their keys in `meta`; for a `small` host."""
        block = None
        if self.block is not None:
            block = self.block.small if small else self.block.whole
        found = {HEADS: self.heads, BLOCK_GRAPH: block}
        return {key: graph for key, graph in found.items() if graph is not None}

    def block_of(self, text: str) -> Block:
        """The graph of this head behind the grafts of its own pipeline, not lowered."""
        pipeline = Pipeline.parse(text, GRAFTS)
        start, grafts = self.canonical(pipeline), pipeline.of("graft")
        whole, small = start.model.clone(), self.kind.small(start.model, oracle_limit())
        whole.meta.update(self._carried(small=False))
        grafts.run(whole)
        if isinstance(small, str):
            return Block(whole, None)
        small.model.meta.update(self._carried(small=True))
        grafts.within(small.blocks).run(small.model)
        return Block(whole, small.model)

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


def _strip(model: ir.Model) -> None:
    """Take back what only passes needed."""
    for key in (SAMPLE, HEADS, BLOCK_GRAPH):
        model.meta.pop(key, None)


def numeric_laws(
    kind: Kind, canonical: ir.Model, rest: Pipeline, say: Watch, carried: Mapping[str, ir.Model]
) -> list[LawRow]:
    """The laws of every graft behind the front, on a small host, which any machine holds; `carried`
    are the graphs of heads that passes read, by their keys in `meta`."""
    small = kind.small(canonical, oracle_limit())
    if isinstance(small, str):
        say(f"laws: the numeric laws do not run: {small}")
        return [LawRow("pipeline", "neutral", "not_run", small)]
    say(f"laws: the oracle runs every graft on {small.told}")
    small.model.meta.update(carried)
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
