"""A bundle's files: graphs, weights, engine, tokenizer; and the proof for its manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftline.bundle_writer import BundleWriter
from graftline.compiled import CompiledPlan, Watch
from graftline.draft import DEPTHS, depth_stage
from graftline.engines import EngineRequest
from graftline.manifest import Manifest, PassRow
from graftline.passes.pipeline import PassReport
from graftline.plan import Plan
from graftline.ports import Port, read_assumptions, read_facts, read_ports, told, write_ports
from graftline.proof import Parts, prove, prove_depth, prove_fused
from graftline.raw_ports import read_raw
from graftline.recipe import FUSED
from graftline.store import WeightFile, checkpoint_files, save_graph

if TYPE_CHECKING:
    from graftline.models.host import Host


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
    compiled, fused, target, dtype = made.target, made.fused, plan.target, plan.dtype
    # the export says what its own inputs are, for whoever runs it without the compiler
    write_ports(host.model, read_raw(compiled.canonical.metadata_props))
    assumptions = read_assumptions(compiled.canonical)
    for line in told(assumptions):
        say(f"assumed: {line}")
    graphs = {"export": host.model, "canonical": compiled.canonical, target: compiled.lowered}
    if fused is not None:
        graphs[FUSED] = fused.lowered
    cuts = {depth_stage(blocks): (blocks, cut) for blocks, cut in made.cuts.items()}
    graphs |= {stage: cut.lowered for stage, (_, cut) in cuts.items()}
    linked: dict[Path, str] = {}
    for model in graphs.values():
        for file in sorted(checkpoint_files(model)):
            if file not in linked:
                linked[file] = f"weights/{len(linked)}-{file.name}"
                say(f"weights: {'linking' if mode == 'link' else 'copying'} {file.name}")
                writer.link_or_copy(file, linked[file], mode)
    files: dict[str, str] = {}
    store = WeightFile(writer.root, "shared.weights", writer.need)
    own = WeightFile(writer.root, f"{_file_name(target)}.weights", writer.need)
    for name, model in graphs.items():
        files[name] = f"{_file_name(name)}.onnx"
        say(f"writing {files[name]}")
        weight_file = store if name in ("export", "canonical") else own
        save_graph(model, writer.path(files[name]), weight_file, linked)
    tokenizer = [_copied(writer, file) for file in host.tokenizer_files]
    facts = read_facts(compiled.lowered)
    ports = {name: read_ports(model) for name, model in graphs.items()}
    extra: dict[str, Any] = {}
    if plan.request is not None:  # before the proof, whose sessions leave memory behind
        stage = target if fused is None else FUSED
        built = _engine(writer, plan.request, files[stage], ports[stage], say)
        extra["engine"] = {"graph": stage, **built}
    parts = Parts(writer.root, files, facts, ports, target, dtype)
    proof = prove(parts, host.own, "the graph itself is the checkpoint", say)
    extra |= {"min_rows": proof.min_rows, "per_rows": proof.per_rows}
    reports, laws = compiled.reports, [*compiled.laws, *proof.laws]
    if fused is not None:
        more = fused.beyond(compiled)
        reports, laws = [*reports, *more.reports], [*laws, *more.laws]
        laws.append(prove_fused(writer.root, files, facts, ports, target, plan.recipe, say))
        extra[FUSED] = {"pipeline": fused.pipeline}
    for stage, (blocks, cut) in cuts.items():
        more = cut.beyond(compiled)
        reports, laws = [*reports, *more.reports], [*laws, *more.laws]
        laws += prove_depth(writer.root, files, facts, ports, stage, blocks, target, dtype, say)
    if cuts:
        extra[DEPTHS] = {
            stage: {"blocks": blocks, "pipeline": cut.pipeline}
            for stage, (blocks, cut) in cuts.items()
        }
    return Manifest(
        name=Path(writer.out).name,
        facts=facts,
        pipeline=compiled.pipeline,
        recipe=plan.recipe.name,
        target=target,
        dtype=dtype,
        graphs=files,
        ports=ports,
        passes=tuple(_row(r) for r in reports),
        laws=tuple(laws),
        assumptions=assumptions,
        exactness=proof.exactness,
        quality=proof.quality,
        generation=host.generation,
        tokenizer=tuple(tokenizer),
        extra=extra,
    )


def _engine(
    writer: BundleWriter, request: EngineRequest, graph: str, ports: tuple[Port, ...], say: Watch
) -> dict[str, Any]:
    """Build the engine into the bundle; what the manifest says of it."""
    rel = f"engines/{_file_name(str(request.target))}.engine"
    timings = Path(f"{writer.out}.timings")
    made = request.build(writer.path(graph), ports, writer.path(rel), timings, say)
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
