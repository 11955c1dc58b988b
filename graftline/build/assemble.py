"""A bundle's files: graphs, weights, engine, tokenizer; and the proof for its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from graftline.build.compiled import Compiled, Watch
from graftline.build.engines import EngineRequest
from graftline.build.ledger import Ledger
from graftline.build.plan import Plan
from graftline.bundle.manifest import (
    CANONICAL,
    EXPORT,
    Manifest,
    PassRow,
    Stage,
    StageRole,
    stage_name,
)
from graftline.bundle.store import save_graph, stored_bytes
from graftline.bundle.weight_file import WeightFile
from graftline.bundle.writer import BundleWriter
from graftline.facts import DraftBlockFacts, DraftHeadFacts, read_facts
from graftline.files import SOURCE
from graftline.kinds import kind_of
from graftline.law import LawRow
from graftline.owners import TARGET
from graftline.passes.pipeline.pipeline import PassReport
from graftline.ports import Assumption, read_assumptions, read_ports, told, write_ports
from graftline.raw_ports import read_raw
from graftline.receptive_field import read_fields
from graftline.recipe import FUSED
from graftline.smoothing import read_smoothing

if TYPE_CHECKING:
    from graftline.models.host import Host

MOSTLY = 0.5
"""Share of a checkpoint file that the engines must read as it is for them to point into it."""
SMALL = 1 << 20
"""Bytes of a checkpoint file that are rather written than the whole file linked for them."""


def write_bundle(
    writer: BundleWriter,
    hosts: Mapping[str, Host],
    plan: Plan,
    made: Mapping[str, Compiled],
    mode: Literal["link", "copy"],
    say: Watch,
) -> Manifest:
    """Write the graphs of all stages and their weights, build the engine where there is one, prove
    everything; what the manifest says of it. `hosts` are the exports, by the names of their stages.
    """
    plan = replace(plan, stages=tuple(s for s in plan.stages if s.name in made))
    for stage in plan.stages:
        if stage.role == "engine":
            kind = kind_of(read_facts(hosts[stage.made_of].model))
            kind.engine_of(made[stage.name].lowered, plan.target)
    for host in hosts.values():
        writer.expect(host.states)
    assumptions = _assumptions(hosts, plan, made)
    for line in told(assumptions):
        say(f"assumed: {line}")
    exports = {name: host.model for name, host in hosts.items()}
    stages = _write_graphs(writer, exports, plan, made, mode, say)
    host = hosts[EXPORT]
    tokenizer = [_copied(writer, file) for file in host.tokenizer_files]
    extra: dict[str, Any] = {}
    if plan.request is not None:  # before the proof, whose sessions leave memory behind
        name = FUSED if plan.fused else plan.target
        extra["engine"] = _engine(writer, plan.request, name, stages[name], say)
        if asked := [n for n, s in stages.items() if _is_asked(s, plan)]:
            extra["heads"] = [
                _engine(writer, _asking(plan, stages[n]), n, stages[n], say) for n in asked
            ]
        if forms := [n for n, s in stages.items() if s.role == "form"]:
            extra["forms"] = [_engine(writer, plan.request, n, stages[n], say) for n in forms]
    passes, laws = _prove(writer.root, hosts, plan, made, stages, say)
    return Manifest(
        name=Path(writer.out).name,
        recipe="" if plan.recipe is None else plan.recipe.name,
        target=plan.target,
        stages=stages,
        passes=tuple(passes),
        laws=tuple(laws),
        assumptions=assumptions,
        generation=host.generation,
        tokenizer=tuple(tokenizer),
        extra=extra,
    )


def _assumptions(
    hosts: Mapping[str, Host], plan: Plan, made: Mapping[str, Compiled]
) -> tuple[Assumption, ...]:
    """What was assumed of every export, each of which then says what its own inputs are, for
    whoever runs it without the compiler."""
    found: list[Assumption] = []
    for name, host in hosts.items():
        stage = next((s for s in plan.stages if s.made_of == name), None)
        if stage is None:  # an adapter's graph, which passes on the target read
            continue
        canonical = made[stage.name].canonical
        write_ports(host.model, read_raw(canonical.metadata_props))
        found += [replace(a, owner=stage.owner) for a in read_assumptions(canonical)]
    return tuple(found)


def _prove(
    folder: Path,
    hosts: Mapping[str, Host],
    plan: Plan,
    made: Mapping[str, Compiled],
    stages: dict[str, Stage],
    say: Watch,
) -> tuple[list[PassRow], list[LawRow]]:
    """Prove every stage, and put what was measured into those that are engines; all passes and laws
    of the bundle."""
    ledger = Ledger(stages, folder, plan.target, plan.recipe, say)
    passes: list[PassRow] = []
    laws: list[LawRow] = []
    for stage in plan.stages:
        reports, checked = ledger.enter(stage.name, made[stage.name])
        own = hosts[stage.made_of].own
        proof = ledger.prove(stage.name, own, "the graph itself is the checkpoint")
        passes += [_row(report, stage.owner) for report in reports]
        laws += [*checked, *proof.laws]
        stages[stage.name] = replace(
            stages[stage.name], exactness=proof.exactness, quality=proof.quality
        )
    return passes, laws


def _write_graphs(
    writer: BundleWriter,
    exports: Mapping[str, ir.Model],
    plan: Plan,
    made: Mapping[str, Compiled],
    mode: Literal["link", "copy"],
    say: Watch,
) -> dict[str, Stage]:
    """The engines' graphs first: what exports and canonical graphs share with them, these only
    point to."""
    engines = [stage for stage in plan.stages if stage.role == "engine"]
    canonical = {stage_name(s.owner, CANONICAL): made[s.name].canonical for s in engines}
    linked: dict[Path, str] = {}
    for graphs, weights, folder in (
        ({name: one.lowered for name, one in made.items()}, writer.engine, "weights"),
        ({**exports, **canonical}, writer.source, SOURCE),
    ):
        if mode == "link":
            link = partial(_linked, writer, say)
            link_files(list(graphs.values()), weights, folder, linked, link)
        for name, model in graphs.items():
            say(f"writing {_file(name)}")
            save_graph(model, writer.path(_file(name)), weights, linked)
        weights.forget()
    found: dict[str, Stage] = {}
    for one in engines:
        model = canonical[name := stage_name(one.owner, CANONICAL)]
        if one.made_of not in found:
            found[one.made_of] = _stage("export", one.made_of, exports[one.made_of], one.owner)
        found[name] = _stage("canonical", name, model, one.owner)
    for name in [name for name in exports if name not in found]:
        found[name] = _stage("export", name, exports[name], TARGET)
    for one in plan.stages:
        lowered = _stage(one.role, one.name, made[one.name].lowered, one.owner)
        pipeline = made[one.name].pipeline
        found[one.name] = replace(
            lowered, pipeline=pipeline, made_of=one.made_of, dtype=one.dtype,
            inputs_from=one.inputs_from,
        )  # fmt: skip
    return found


def _stage(role: StageRole, name: str, model: ir.Model, owner: str) -> Stage:
    return Stage(
        role, _file(name), read_ports(model), read_facts(model), owner=owner,
        fields=read_fields(model), smoothing=read_smoothing(model),
    )  # fmt: skip


def link_files(
    models: Sequence[ir.Model],
    weights: WeightFile,
    folder: str,
    linked: dict[Path, str],
    link: Callable[[Path, str], bool],
) -> None:
    """Link the checkpoint files that the graphs need most of, below `folder`; what is needed of
    others is written. `link` (file, its path in the bundle) says whether the disk could."""
    for file, size in sorted(stored_bytes(models, weights).items()):
        least = file.stat().st_size * MOSTLY if folder != SOURCE else SMALL
        if file in linked or size < least:
            continue
        rel = f"{folder}/{len(linked)}/{file.name}"
        if link(file, rel):
            linked[file] = rel


def _linked(writer: BundleWriter, say: Watch, file: Path, rel: str) -> bool:
    say(f"weights: linking {file.name}")
    return writer.link(file, rel)


def _is_asked(stage: Stage, plan: Plan) -> bool:
    """Whether a stage is of draft heads that the host asks: a fused step has them within, but a
    decoder of its own reads prompts by its own engine."""
    kinds = DraftBlockFacts if plan.fused else (DraftHeadFacts, DraftBlockFacts)
    return isinstance(stage.facts, kinds) and stage.role == "engine"


def _asking(plan: Plan, stage: Stage) -> EngineRequest:
    """The engine of such a stage."""
    assert plan.request is not None
    if not isinstance(stage.facts, DraftBlockFacts) or plan.recipe is None:
        return plan.request.asking_heads()
    from graftline.runtimes.drafters import configured

    drafter = configured(plan.recipe.drafter, plan.recipe.options)
    return plan.request.asking_block(drafter.width)


def _engine(
    writer: BundleWriter, request: EngineRequest, name: str, stage: Stage, say: Watch
) -> dict[str, Any]:
    """Build the engine of a stage into the bundle; what the manifest says of it."""
    own = stage.owner if stage.role != "form" else name
    part = "" if own == TARGET else f"{own}-"
    rel = f"engines/{part}{_slug(str(request.target))}.engine"
    timings = Path(f"{writer.out}.timings")
    made = request.build(writer.path(stage.file), stage.ports, writer.path(rel), timings, say)
    return {"graph": name, "file": rel, **made.facts()}


def _file(stage: str) -> str:
    """The graph file of a stage."""
    return f"{_slug(stage)}.onnx"


def _slug(name: str) -> str:
    """A stage or target as a file name."""
    return name.replace(":", "-")


def _copied(writer: BundleWriter, file: Path) -> str:
    rel = f"tokenizer/{file.name}"
    shutil.copyfile(file, writer.path(rel))
    return rel


def _row(report: PassReport, owner: str) -> PassRow:
    name = report.text.partition("{")[0]
    added = tuple(f"{count} {op}" for op, count in sorted(report.added.items()))
    return PassRow(
        name,
        report.text,
        report.seconds,
        report.nodes_before,
        report.nodes_after,
        added,
        report.why,
        owner,
    )
