"""Pipelines run on an exported graph: structural laws on all of it, numeric ones on two blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from graftline.evaluate import ORACLE_LIMIT, decoder_feed
from graftline.manifest import LawRow
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.pipeline import PassReport
from graftline.passes.reduce_host import reduce_host
from graftline.plan import FRONT, Plan
from graftline.ports import read_facts

Watch = Callable[[str], None]
LAW_BLOCKS = 2
"""Blocks of the reduced host on which the numeric laws of the grafts run."""


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
        rows = [LawRow(r.graft, r.law, r.checked) for p in self.reports for r in p.laws]
        return rows + self.notes

    def beyond(self, other: Compiled) -> Compiled:
        """What was done and checked here, and not on the way to `other`."""
        done = {r.text for r in other.reports}
        checked = {(row.graft, row.law) for row in other.notes}
        reports = [r for r in self.reports if r.text not in done]
        notes = [row for row in self.notes if (row.graft, row.law) not in checked]
        return replace(self, reports=reports, notes=notes)


@dataclass(frozen=True)
class CompiledPlan:
    """All graphs of a plan: the target's, its fused step's, and its sub-models' by their blocks."""

    target: Compiled
    fused: Compiled | None
    cuts: Mapping[int, Compiled]


def compile_plan(host: ir.Model, plan: Plan, say: Watch) -> CompiledPlan:
    """Run every pipeline of the plan on an exported graph."""
    target = compile_graph(host, plan.text, say)
    fused: Compiled | None = None
    if plan.fused is not None:
        say("the fused step: the same passes, then drafting and verification in the graph")
        fused = compile_graph(host, plan.fused, say)
    cuts: dict[int, Compiled] = {}
    for blocks, text in plan.cuts:
        say(f"its first {blocks} of {read_facts(host).layers} blocks")
        cuts[blocks] = compile_graph(host, text, say)
    return CompiledPlan(target, fused, cuts)


def compile_graph(raw: ir.Model, text: str, say: Watch) -> Compiled:
    """Run a pipeline on an exported graph: structural laws on all of it, numeric laws on a reduced
    host."""
    pipeline = Pipeline.parse(text, GRAFTS)
    model = raw.clone()
    front, rest = pipeline.split(len(Pipeline.parse(FRONT, GRAFTS).grafts))
    reports = front.run(model, watch=_told(say))
    notes: list[LawRow] = []
    reduced = reduce_host(model, LAW_BLOCKS)
    size = sum(v.const_value.nbytes for v in reduced.graph.initializers.values() if v.const_value)
    blocks = min(LAW_BLOCKS, read_facts(model).layers)
    if size <= ORACLE_LIMIT:
        say(f"laws: the oracle runs every graft on {blocks} of {read_facts(model).layers} blocks")
        feed = decoder_feed(read_facts(model).vocabulary)
        for report in rest.within(blocks).run(reduced, feed, watch=_told(say)):
            numeric = [r for r in report.laws if r.law not in ("typed", "wellformed", "interface")]
            notes += [LawRow(r.graft, r.law, f"{r.checked}; {blocks} blocks") for r in numeric]
    else:
        note = f"not run: {blocks} blocks weigh {size / 1e9:.1f} GB, the oracle takes 1 GB"
        notes.append(LawRow("pipeline", "neutral", note))
        say(f"laws: numeric laws {note}")
    grafts, lowering = rest.split(rest.index("pack-projections"))
    reports += grafts.run(model)
    canonical = model.clone()
    reports += lowering.run(model)
    return Compiled(canonical, model, str(pipeline), reports, notes)


def _told(say: Watch) -> Callable[[PassReport], None]:
    def tell(report: PassReport) -> None:
        count = f"{report.nodes_before} -> {report.nodes_after} nodes"
        say(f"{report.text}: {count}, {len(report.laws)} laws hold, {report.seconds:.1f} s")

    return tell
