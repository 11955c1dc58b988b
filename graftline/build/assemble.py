"""A bundle's files: graphs, weights, engine, tokenizer; and the proof for its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from graftline.build.compiled import CompiledPlan, Watch
from graftline.build.engines import EngineRequest
from graftline.build.plan import Plan
from graftline.bundle.manifest import Manifest, PassRow, Stage, StageRole
from graftline.bundle.store import save_graph, stored_bytes
from graftline.bundle.weight_file import WeightFile
from graftline.bundle.writer import BundleWriter
from graftline.facts import read_facts
from graftline.files import SOURCE
from graftline.kinds import kind_of
from graftline.kinds.kind import Parts
from graftline.passes.pipeline.pipeline import PassReport
from graftline.ports import read_assumptions, read_ports, told, write_ports
from graftline.raw_ports import read_raw
from graftline.recipe import FUSED

if TYPE_CHECKING:
    from graftline.models.host import Host

MOSTLY = 0.5
"""Share of a checkpoint file that the engines must read as it is for them to point into it."""
SMALL = 1 << 20
"""Bytes of a checkpoint file that are rather written than the whole file linked for them."""


def write_bundle(
    writer: BundleWriter,
    host: Host,
    plan: Plan,
    made: CompiledPlan,
    mode: Literal["link", "copy"],
    say: Watch,
) -> Manifest:
    """Write the graphs and their weights, build the engine where there is one, prove everything;
    what the manifest says of it."""
    compiled, fused, target = made.target, made.fused, plan.target
    kind = kind_of(read_facts(host.model))
    kind.engine_of(compiled.lowered, target)
    writer.expect(host.states)
    # the export says what its own inputs are, for whoever runs it without the compiler
    write_ports(host.model, read_raw(compiled.canonical.metadata_props))
    assumptions = read_assumptions(compiled.canonical)
    for line in told(assumptions):
        say(f"assumed: {line}")
    stages = _write_graphs(writer, host.model, made, target, mode, say)
    tokenizer = [_copied(writer, file) for file in host.tokenizer_files]
    extra: dict[str, Any] = {}
    if plan.request is not None:  # before the proof, whose sessions leave memory behind
        stage = target if fused is None else FUSED
        built = _engine(writer, plan.request, stages[stage], say)
        extra["engine"] = {"graph": stage, **built}
    parts = Parts(writer.root, stages, target, plan.dtype)
    proof = kind.prove(parts, host.own, "the graph itself is the checkpoint", say)
    extra |= {"min_rows": proof.min_rows, "per_rows": proof.per_rows}
    reports, laws = list(compiled.reports), [*compiled.laws, *proof.laws]
    laws += kind.prove_forms(parts, say)
    for name, beside in made.beside().items():
        more = beside.beyond(compiled)
        reports += more.reports
        if name in made.forms:
            laws += more.laws
            continue
        assert plan.recipe is not None, "only decoders have stages beside the target"
        laws += [*more.laws, *kind.prove_stage(parts, name, plan.recipe, say)]
    return Manifest(
        name=Path(writer.out).name,
        recipe="" if plan.recipe is None else plan.recipe.name,
        target=target,
        dtype=plan.dtype,
        stages=stages,
        passes=tuple(_row(r) for r in reports),
        laws=tuple(laws),
        assumptions=assumptions,
        exactness=proof.exactness,
        quality=proof.quality,
        generation=host.generation,
        tokenizer=tuple(tokenizer),
        extra=extra,
    )


def _write_graphs(
    writer: BundleWriter,
    export: ir.Model,
    made: CompiledPlan,
    target: str,
    mode: Literal["link", "copy"],
    say: Watch,
) -> dict[str, Stage]:
    """The engines' graphs first: what the export and the canonical graph share with them, these
    only point to."""
    engines = {target: made.target, **made.beside()}
    sources = {"export": export, "canonical": made.target.canonical}
    files: dict[str, str] = {}
    linked: dict[Path, str] = {}
    for graphs, weights, folder in (
        ({name: one.lowered for name, one in engines.items()}, writer.engine, "weights"),
        (sources, writer.source, SOURCE),
    ):
        if mode == "link":
            link = partial(_linked, writer, say)
            link_files(list(graphs.values()), weights, folder, linked, link)
        for name, model in graphs.items():
            files[name] = f"{_file_name(name)}.onnx"
            say(f"writing {files[name]}")
            save_graph(model, writer.path(files[name]), weights, linked)
        weights.forget()
    roles: dict[str, StageRole] = {target: "target", FUSED: "fused"}
    found = {
        "export": _stage("export", files["export"], export),
        "canonical": _stage("canonical", files["canonical"], made.target.canonical),
    }
    for name, one in engines.items():
        role = "form" if name in made.forms else roles.get(name, "depth")
        found[name] = _stage(role, files[name], one.lowered, one.pipeline)
    return found


def _stage(role: StageRole, file: str, model: ir.Model, pipeline: str = "") -> Stage:
    return Stage(role, file, read_ports(model), read_facts(model), pipeline)


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
        rel = f"{folder}/{len(linked)}-{file.name}"
        if link(file, rel):
            linked[file] = rel


def _linked(writer: BundleWriter, say: Watch, file: Path, rel: str) -> bool:
    say(f"weights: linking {file.name}")
    return writer.link(file, rel)


def _engine(
    writer: BundleWriter, request: EngineRequest, stage: Stage, say: Watch
) -> dict[str, Any]:
    """Build the engine into the bundle; what the manifest says of it."""
    rel = f"engines/{_file_name(str(request.target))}.engine"
    timings = Path(f"{writer.out}.timings")
    made = request.build(writer.path(stage.file), stage.ports, writer.path(rel), timings, say)
    return {"file": rel, **made.facts()}


def _file_name(target: str) -> str:
    """A stage or target as a file name."""
    return target.replace(":", "-")


def _copied(writer: BundleWriter, file: Path) -> str:
    rel = f"tokenizer/{file.name}"
    shutil.copyfile(file, writer.path(rel))
    return rel


def _row(report: PassReport) -> PassRow:
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
    )
