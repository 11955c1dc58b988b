"""`optimize`: checkpoint in, bundle out. The one place where models, passes and runtime meet."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from graftline.bundle import DRAFT, Bundle
from graftline.bundle_writer import BundleWriter, check_target
from graftline.draft import (
    DEPTHS,
    MASK_TOKEN,
    DraftSource,
    check_depths,
    check_mask_token,
    check_vocabulary,
    depth_stage,
)
from graftline.engines import EngineRequest, is_engine
from graftline.errors import GraftlineError, nearest
from graftline.evaluate import ORACLE_LIMIT, decoder_feed
from graftline.manifest import LawRow, Manifest, PassRow
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.pipeline import PassReport
from graftline.passes.reduce_host import reduce_host
from graftline.ports import Port, read_facts, read_ports
from graftline.proof import prove, prove_depth, prove_fused
from graftline.recipe import FUSED, Recipe, check_fusable, check_step, recipe
from graftline.store import WeightFile, checkpoint_files, save_graph
from graftline.targets import CPU, TARGETS, ending

if TYPE_CHECKING:
    from graftline.models.host import Host

Watch = Callable[[str], None]
FRONT = "canonicalize | anchors"
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


def optimize(
    checkpoint: str | Path,
    out: str | Path,
    recipe: str = "prompt-lookup",
    passes: str | None = None,
    target: str = "ort-cpu",
    dtype: str = "fp32",
    weights: Literal["link", "copy"] = "link",
    full_export: bool = False,
    quantizer: str | None = None,
    draft: str | None = None,
    draft_depths: Sequence[int] = (),
    engine: str = "",
    step: str = "host",
    watch: Watch | None = None,
) -> Bundle:
    """Export `checkpoint`, graft and lower it, prove it, and write the bundle `out`, all or
    nothing.

    `passes` replaces the recipe's own; `quantizer` names the algorithm of `dtype` int8 or int4.
    `draft` puts a draft engine in: "int4" or "int8" (the same weights quantized), or the path of a
    checkpoint of the same vocabulary, optionally "PATH:int4". `draft_depths` (12, 20) puts the
    draft's first 12 and first 20 blocks beside it, as drafts of the same weights. `engine` are
    options of a TensorRT target ("rows=1+64,capacity=4096"). `step` "fused" puts a second graph in,
    over the same weights, whose step drafts, verifies and commits by itself; a TensorRT engine is
    built from that one. `watch` is told each step in words. Raises GraftlineError; then `out` is as
    it was.
    """
    from graftline.models.checkpoint import open_checkpoint

    say = watch or _silent
    check_step(step)
    request = EngineRequest.parse(target, dtype, engine) if is_engine(target) else None
    if engine and request is None:
        raise GraftlineError(f"--engine goes with a TensorRT target, not with {target}")
    chosen, text = plan(recipe, passes, target, dtype, quantizer, request)
    fused = None
    if step == FUSED:
        request, fused = fused_plan(chosen, passes, target, dtype, quantizer, request)
    if draft is not None and request is not None:
        raise GraftlineError(f"--draft goes with --target ort-cpu, not with {target}")
    source = None if draft is None else DraftSource.parse(draft, TARGETS[target], dtype)
    if source is not None and source.checkpoint is not None and not source.checkpoint.exists():
        known = nearest(str(draft), [name for name in TARGETS[target] if name != dtype])
        raise GraftlineError(f"--draft {draft}: no such file or folder, nor a precision{known}")
    if source is None and "draft" in chosen.needs:
        raise GraftlineError(f"the recipe {chosen.name} needs a draft engine; add --draft int8")
    check_depths(draft_depths, draft)
    if DEPTHS in chosen.needs and not draft_depths:
        raise GraftlineError(f"the recipe {chosen.name} needs depths; add --draft-depths 12,20")
    check_target(Path(out))
    say(f"reading {checkpoint}")
    host = open_checkpoint(checkpoint).host(full_export=full_export, watch=say)
    other = host
    if source is not None and source.checkpoint is not None:
        say(f"reading the draft {source.checkpoint}")
        other = open_checkpoint(source.checkpoint).host(full_export=full_export, watch=say)
        sizes = host.facts.vocabulary, other.facts.vocabulary
        files = host.tokenizer_files, other.tokenizer_files
        check_vocabulary(*files, sizes, str(source.checkpoint), other.facts.mask_token)
    check_depths(draft_depths, draft, other.facts.layers)
    if MASK_TOKEN in chosen.needs:
        check_mask_token(other.facts, f"the recipe {chosen.name}", f"--draft {draft}")
    compiled = compile_graph(host.model, text, say)
    step_graph: Compiled | None = None
    if fused is not None:
        say("the fused step: the same passes, then drafting and verification in the graph")
        step_graph = compile_graph(host.model, fused, say)
    rebuild = f"graftline optimize {checkpoint} -o {out} --recipe {chosen.name} --dtype {dtype}"
    if draft is not None:
        rebuild += f" --draft {draft}"
    if draft_depths:
        rebuild += f" --draft-depths {','.join(map(str, draft_depths))}"
    if fused is not None:
        rebuild += " --step fused"
    if target != CPU:
        rebuild += f" --target {target}" + (f" --engine {engine}" if engine else "")
    with BundleWriter(out, watch=say) as writer:
        manifest = _write(
            writer, host, compiled, chosen, target, dtype, weights, say, request, step_graph
        )
        if source is not None:
            inner = writer.nested(DRAFT)
            _write_draft(inner, other, source, draft_depths, target, weights, rebuild, say)
            same = source.checkpoint is None
            manifest = replace(manifest, draft={"source": draft, "same_weights": same})
        say("hashing and closing the bundle")
        writer.finish(replace(manifest, rebuild=rebuild))
    return Bundle.open(out, verify=False)


def plan(
    name: str,
    passes: str | None,
    target: str,
    dtype: str,
    quantizer: str | None,
    request: EngineRequest | None = None,
    fusing: str = "",
) -> tuple[Recipe, str]:
    """The recipe of that name and the whole pipeline text, with the passes `fusing` behind the
    recipe's. Raises for what is unknown."""
    chosen = recipe(name)
    own = passes if passes is not None else chosen.passes
    parts = [FRONT, own, fusing, "pack-projections"]
    if request is not None:
        if quantizer is not None:
            raise GraftlineError(f"--quantizer goes with --target ort-cpu, not with {target}")
        text = " | ".join([*filter(None, parts), request.lowering])
        return chosen, str(Pipeline.parse(text, GRAFTS))
    text = " | ".join(filter(None, [*parts, ending(target, dtype, quantizer)]))
    return chosen, str(Pipeline.parse(text, GRAFTS))


def fused_plan(
    chosen: Recipe,
    passes: str | None,
    target: str,
    dtype: str,
    quantizer: str | None,
    request: EngineRequest | None,
) -> tuple[EngineRequest | None, str]:
    """The pipeline text of the fused step, and the engine it asks for, whose steps are the
    recipe's trees. Raises GraftlineError for a recipe or a target that has none."""
    if request is None and target != CPU:
        raise GraftlineError(f"--step fused goes with {CPU} or a TensorRT target, not {target}")
    check_fusable(chosen)
    from graftline.runtimes.drafters import make_drafter

    drafter: Any = make_drafter(chosen.drafter, chosen.options)
    if request is not None:
        request = request.stepping(drafter.rows)
    fusing = f"fuse-verify{{sample=true}} | fuse-draft{{width={drafter.width}}}"
    text = plan(chosen.name, passes, target, dtype, quantizer, request, fusing)[1]
    return request, text


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


def _write(
    writer: BundleWriter,
    host: Host,
    compiled: Compiled,
    chosen: Recipe,
    target: str,
    dtype: str,
    mode: Literal["link", "copy"],
    say: Watch,
    request: EngineRequest | None = None,
    fused: Compiled | None = None,
    depths: Mapping[int, Compiled] | None = None,
) -> Manifest:
    graphs = {"export": host.model, "canonical": compiled.canonical, target: compiled.lowered}
    if fused is not None:
        graphs[FUSED] = fused.lowered
    cuts = {depth_stage(blocks): (blocks, cut) for blocks, cut in (depths or {}).items()}
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
    if request is not None:  # before the proof, whose sessions leave memory behind
        stage = target if fused is None else FUSED
        made = _engine(writer, request, files[stage], ports[stage], say)
        extra["engine"] = {"graph": stage, **made}
    proof = prove(writer.root, files, facts, ports[target], ports["canonical"], target, dtype, say)
    extra |= {"min_rows": proof.min_rows, "per_rows": proof.per_rows}
    reports, laws = compiled.reports, [*compiled.laws, *proof.laws]
    if fused is not None:
        more = fused.beyond(compiled)
        reports, laws = [*reports, *more.reports], [*laws, *more.laws]
        laws.append(prove_fused(writer.root, files, facts, ports, target, chosen, say))
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
        recipe=chosen.name,
        target=target,
        dtype=dtype,
        graphs=files,
        ports=ports,
        passes=tuple(_row(r) for r in reports),
        laws=tuple(laws),
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


def _write_draft(
    writer: BundleWriter,
    host: Host,
    source: DraftSource,
    depths: Sequence[int],
    target: str,
    mode: Literal["link", "copy"],
    rebuild: str,
    say: Watch,
) -> None:
    """The draft engine as a bundle inside the bundle: compiled and proven like any other, with the
    passes of plain decoding, because a draft scores single rows; and its depths, over its weights.
    """
    say(f"draft engine: {source.checkpoint or 'the same weights'} in {source.dtype}")
    chosen, text = plan("plain", None, target, source.dtype, None)
    compiled = compile_graph(host.model, text, say)
    cuts: dict[int, Compiled] = {}
    for blocks in depths:
        say(f"draft engine: its first {blocks} of {host.facts.layers} blocks")
        cutting = f"cut-depth{{blocks={blocks}}}"
        text = plan("plain", None, target, source.dtype, None, fusing=cutting)[1]
        cuts[blocks] = compile_graph(host.model, text, say)
    manifest = _write(writer, host, compiled, chosen, target, source.dtype, mode, say, depths=cuts)
    writer.finish(replace(manifest, name=DRAFT, rebuild=rebuild))


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


def _silent(line: str) -> None:
    """Watch nothing."""
