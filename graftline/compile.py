"""`optimize`: checkpoint in, bundle out. The one place where models, passes and runtime meet."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from graftline.bundle import DRAFT, Bundle
from graftline.bundle_writer import BundleWriter, check_target
from graftline.draft import DraftSource, check_vocabulary
from graftline.engines import EngineRequest, is_engine
from graftline.errors import BackendError, GraftlineError, LawBroken, nearest
from graftline.evaluate import decoder_feed
from graftline.manifest import LawRow, Manifest, PassRow
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.pipeline import PassReport
from graftline.passes.reduce_host import reduce_host
from graftline.ports import Port, read_facts, read_ports
from graftline.proof import prove
from graftline.recipe import Recipe, recipe
from graftline.store import WeightFile, checkpoint_files, load_graph, save_graph

if TYPE_CHECKING:
    from graftline.models.host import Host

Watch = Callable[[str], None]
FRONT = "canonicalize | anchors"
DTYPES = {"fp32": "", "int8": "quantize{bits=8}", "int4": "quantize{bits=4}"}
TARGETS = ("ort-cpu",)
LAW_BLOCKS = 2
"""Blocks of the reduced host on which the numeric laws of the grafts run."""
ORACLE_LIMIT = 1 << 30
"""Bytes of weights up to which the oracle runs; a larger reduced host is held to structural laws.
"""


@dataclass
class Compiled:
    """The graphs of one run of the pipeline, and what every pass reported."""

    canonical: ir.Model
    lowered: ir.Model
    pipeline: str
    reports: list[PassReport]
    notes: list[LawRow] = field(default_factory=list[LawRow])


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
    engine: str = "",
    watch: Watch | None = None,
) -> Bundle:
    """Export `checkpoint`, graft and lower it, prove it, and write the bundle `out`, all or
    nothing.

    `passes` replaces the recipe's own; `quantizer` names the algorithm of `dtype` int8 or int4.
    `draft` puts a draft engine in: "int4" or "int8" (the same weights quantized), or the path of a
    checkpoint of the same vocabulary, optionally "PATH:int4". `engine` are options of a TensorRT
    target ("rows=1+64,capacity=4096"). `watch` is told each step in words. Raises GraftlineError;
    then `out` is as it was.
    """
    from graftline.models.checkpoint import open_checkpoint

    say = watch or _silent
    request = EngineRequest.parse(target, dtype, engine) if is_engine(target) else None
    if engine and request is None:
        raise GraftlineError(f"--engine goes with a TensorRT target, not with {target}")
    chosen, text = plan(recipe, passes, target, dtype, quantizer, request)
    if draft is not None and request is not None:
        raise GraftlineError(f"--draft goes with --target ort-cpu, not with {target}")
    source = None if draft is None else DraftSource.parse(draft, DTYPES, dtype)
    if source is not None and source.checkpoint is not None and not source.checkpoint.exists():
        known = nearest(str(draft), [name for name in DTYPES if name != dtype])
        raise GraftlineError(f"--draft {draft}: no such file or folder, nor a precision{known}")
    if source is None and "draft" in chosen.needs:
        raise GraftlineError(f"the recipe {chosen.name} needs a draft engine; add --draft int8")
    check_target(Path(out))
    say(f"reading {checkpoint}")
    host = open_checkpoint(checkpoint).host(full_export=full_export, watch=say)
    other = host
    if source is not None and source.checkpoint is not None:
        say(f"reading the draft {source.checkpoint}")
        other = open_checkpoint(source.checkpoint).host(full_export=full_export, watch=say)
        sizes = host.facts.vocabulary, other.facts.vocabulary
        check_vocabulary(host.tokenizer_files, other.tokenizer_files, sizes, str(source.checkpoint))
    compiled = compile_graph(host.model, text, say)
    rebuild = f"graftline optimize {checkpoint} -o {out} --recipe {chosen.name} --dtype {dtype}"
    if draft is not None:
        rebuild += f" --draft {draft}"
    if request is not None:
        rebuild += f" --target {target}" + (f" --engine {engine}" if engine else "")
    with BundleWriter(out, watch=say) as writer:
        manifest = _write(writer, host, compiled, chosen, target, dtype, weights, say, request)
        if source is not None:
            _write_draft(writer.nested(DRAFT), other, source, target, weights, rebuild, say)
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
) -> tuple[Recipe, str]:
    """The recipe of that name and the whole pipeline text. Raises for what is unknown."""
    chosen = recipe(name)
    parts = [FRONT, passes if passes is not None else chosen.passes, "pack-projections"]
    if request is not None:
        if quantizer is not None:
            raise GraftlineError(f"--quantizer goes with --target ort-cpu, not with {target}")
        text = " | ".join([*filter(None, parts), request.lowering])
        return chosen, str(Pipeline.parse(text, GRAFTS))
    if target not in TARGETS:
        raise BackendError(f"no builder for the target '{target}' here{nearest(target, TARGETS)}")
    if dtype not in DTYPES:
        raise GraftlineError(f"no dtype is called '{dtype}'{nearest(dtype, DTYPES)}")
    quantize = DTYPES[dtype]
    if quantizer is not None:
        if not quantize:
            raise GraftlineError("--quantizer goes with --dtype int8 or int4")
        quantize = quantize.replace("}", f",algorithm={quantizer}}}")
    text = " | ".join([*filter(None, [*parts, quantize]), "lower-ort"])
    return chosen, str(Pipeline.parse(text, GRAFTS))


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
        for report in rest.run(reduced, feed, watch=_told(say)):
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
) -> Manifest:
    graphs = {"export": host.model, "canonical": compiled.canonical, target: compiled.lowered}
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
        save_graph(model, writer.path(files[name]), own if name == target else store, linked)
    tokenizer = [_copied(writer, file) for file in host.tokenizer_files]
    facts = read_facts(compiled.lowered)
    ports = {name: read_ports(model) for name, model in graphs.items()}
    extra: dict[str, Any] = {}
    if request is not None:  # before the proof, whose sessions leave memory behind
        extra["engine"] = _engine(writer, request, files[target], ports[target], say)
    proof = prove(writer.root, files, facts, ports[target], ports["canonical"], target, dtype, say)
    extra |= {"min_rows": proof.min_rows, "per_rows": proof.per_rows}
    return Manifest(
        name=Path(writer.out).name,
        facts=facts,
        pipeline=compiled.pipeline,
        recipe=chosen.name,
        target=target,
        dtype=dtype,
        graphs=files,
        ports=ports,
        passes=tuple(_row(r) for r in compiled.reports),
        laws=(*_laws(compiled), *proof.laws),
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
    target: str,
    mode: Literal["link", "copy"],
    rebuild: str,
    say: Watch,
) -> None:
    """The draft engine as a bundle inside the bundle: compiled and proven like any other, with the
    passes of plain decoding, because a draft scores single rows."""
    say(f"draft engine: {source.checkpoint or 'the same weights'} in {source.dtype}")
    chosen, text = plan("plain", None, target, source.dtype, None)
    compiled = compile_graph(host.model, text, say)
    manifest = _write(writer, host, compiled, chosen, target, source.dtype, mode, say)
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


def _laws(compiled: Compiled) -> list[LawRow]:
    rows = [LawRow(r.graft, r.law, r.checked) for p in compiled.reports for r in p.laws]
    return rows + compiled.notes


def recheck(bundle: Bundle, watch: Watch | None = None) -> list[LawRow]:
    """Compile the bundle's own export again and prove it again.

    The pipeline must give the very graph that is stored. Raises LawBroken and what
    the pipeline raises.
    """
    say = watch or _silent
    manifest = bundle.manifest
    compiled = compile_graph(load_graph(bundle.graph("export")), manifest.pipeline, say)
    stored = load_graph(bundle.graph(manifest.target))
    for place, (now, was) in enumerate(zip_longest(compiled.lowered.graph, stored.graph)):
        if _wiring(now) != _wiring(was):
            raise LawBroken(
                "pipeline", "reproducible", f"node {place}", f"{_wiring(was)} is stored, not made"
            )
    same = LawRow("pipeline", "reproducible", f"{len(stored.graph)} nodes made again as stored")
    files, ports = dict(manifest.graphs), manifest.ports
    target, dtype = manifest.target, manifest.dtype
    proof = prove(
        bundle.path, files, manifest.facts, ports[target], ports["canonical"], target, dtype, say
    )
    return [*_laws(compiled), same, *proof.laws]


def _wiring(node: ir.Node | None) -> tuple[Any, ...]:
    """What a node is, without its own name."""
    if node is None:
        return ("nothing",)
    inputs = tuple(v.name if v is not None else "" for v in node.inputs)
    outputs = tuple(v.name if v.uses() or v.is_graph_output() else "" for v in node.outputs)
    return (node.op_type, inputs, outputs)


def _silent(line: str) -> None:
    """Watch nothing."""
