"""`optimize`: checkpoint in, bundle out. The one place where models, passes and runtime meet."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from graftline.bundle import Bundle
from graftline.bundle_writer import BundleWriter, check_target
from graftline.errors import BackendError, GraftlineError, LawBroken, nearest
from graftline.evaluate import decoder_feed
from graftline.manifest import Exactness, LawRow, Manifest, PassRow
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.pipeline import PassReport
from graftline.passes.reduce_host import reduce_host
from graftline.ports import Facts, Port, read_facts, read_ports
from graftline.recipe import Recipe, recipe
from graftline.store import WeightFile, checkpoint_files, load_graph, save_graph

if TYPE_CHECKING:
    from graftline.models.host import Host
    from graftline.runtimes.ort import OrtSession

Watch = Callable[[str], None]
FRONT = "canonicalize | anchors"
DTYPES = {"fp32": "", "int8": "quantize{bits=8}", "int4": "quantize{bits=4}"}
TARGETS = ("ort-cpu",)
LAW_BLOCKS = 2
"""Blocks of the reduced host on which the numeric laws of the grafts run."""
HELD_OUT_TOKENS = 500
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
    watch: Watch | None = None,
) -> Bundle:
    """Export `checkpoint`, graft and lower it, prove it, and write the bundle `out`, all or
    nothing.

    `passes` replaces the recipe's own; `quantizer` names the algorithm of `dtype` int8 or int4.
    `watch` is told each step in words. Raises GraftlineError; then `out` is as it was.
    """
    from graftline.models.checkpoint import open_checkpoint

    say = watch or _silent
    chosen, text = plan(recipe, passes, target, dtype, quantizer)
    check_target(Path(out))
    say(f"reading {checkpoint}")
    host = open_checkpoint(checkpoint).host(full_export=full_export, watch=say)
    compiled = compile_graph(host.model, text, say)
    with BundleWriter(out, watch=say) as writer:
        manifest = _write(writer, host, compiled, chosen, target, dtype, weights, say)
        rebuild = f"graftline optimize {checkpoint} -o {out} --recipe {chosen.name} --dtype {dtype}"
        say("hashing and closing the bundle")
        writer.finish(replace(manifest, rebuild=rebuild))
    return Bundle.open(out, verify=False)


def plan(
    name: str, passes: str | None, target: str, dtype: str, quantizer: str | None
) -> tuple[Recipe, str]:
    """The recipe of that name and the whole pipeline text. Raises for what is unknown."""
    if target not in TARGETS:
        raise BackendError(f"no builder for the target '{target}' here{nearest(target, TARGETS)}")
    if dtype not in DTYPES:
        raise GraftlineError(f"no dtype is called '{dtype}'{nearest(dtype, DTYPES)}")
    quantize = DTYPES[dtype]
    if quantizer is not None:
        if not quantize:
            raise GraftlineError("--quantizer goes with --dtype int8 or int4")
        quantize = quantize.replace("}", f",algorithm={quantizer}}}")
    chosen = recipe(name)
    parts = [FRONT, passes if passes is not None else chosen.passes, "pack-projections", quantize]
    text = " | ".join([*filter(None, parts), "lower-ort"])
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
    own = WeightFile(writer.root, f"{target}.weights", writer.need)
    for name, model in graphs.items():
        say(f"writing {name}.onnx")
        files[name] = f"{name}.onnx"
        save_graph(model, writer.path(files[name]), own if name == target else store, linked)
    tokenizer = [_copied(writer, file) for file in host.tokenizer_files]
    facts = read_facts(compiled.lowered)
    ports = {name: read_ports(model) for name, model in graphs.items()}
    proof = prove(writer.root, files, facts, ports[target], ports["canonical"], target, dtype, say)
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
        exactness=Exactness(proof.row_invariant, proof.worst),
        quality=proof.quality,
        generation=host.generation,
        tokenizer=tuple(tokenizer),
        extra={"min_rows": proof.min_rows, "per_rows": proof.per_rows},
    )


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


@dataclass
class Proof:
    """What was measured on the finished engine, with the real weights."""

    laws: list[LawRow]
    row_invariant: bool
    worst: float
    min_rows: int | None
    per_rows: dict[str, float]
    quality: dict[str, float]


def prove(
    folder: Path,
    files: dict[str, str],
    facts: Facts,
    ports: tuple[Port, ...],
    canonical: tuple[Port, ...],
    target: str,
    dtype: str,
    say: Watch,
) -> Proof:
    """Compare the engine with the unmodified export, and measure its rows against one another."""
    from graftline.runtimes.ort import OrtSession
    from graftline.runtimes.row_invariance import row_invariance

    say("proof: the engine against the unmodified export, with the real weights")
    capacity = min(facts.positions or 512, 512)
    session = OrtSession(folder / files[target], facts, ports, capacity=capacity)
    laws = [LawRow(target, "whole", whole(folder / files["export"], session, facts, dtype))]
    random = np.random.default_rng(1)
    prompt = random.integers(0, facts.vocabulary, min(24, capacity - 20), dtype=np.int64)
    session.reset(1)
    rows = row_invariance(session, prompt)
    least = rows.min_rows
    words = (
        "rows do not depend on one another"
        if rows.row_invariant
        else (
            f"one row alone is rounded otherwise than several; from {least} rows on they agree"
            if least
            else "a row's result depends on the rows beside it: never lossless"
        )
    )
    laws.append(LawRow(target, "row-invariant", f"{words} (largest difference {rows.worst:.2g})"))
    quality: dict[str, float] = {}
    if dtype != "fp32":  # the engine is close by design only; what it was made from must be equal
        fp32 = OrtSession(folder / files["canonical"], facts, canonical, capacity=capacity)
        equal = whole(folder / files["export"], fp32, facts, "fp32")
        laws.append(LawRow("canonical", "whole", equal))
        if (folder / "tokenizer" / "tokenizer.json").is_file():
            quality = _quality(folder, fp32, session, dtype, say)
    return Proof(
        laws,
        rows.row_invariant,
        rows.worst,
        least,
        {str(k): float(v) for k, v in rows.per_rows.items()},
        quality,
    )


def _quality(
    folder: Path, fp32: OrtSession, session: OrtSession, dtype: str, say: Watch
) -> dict[str, float]:
    """Perplexity on held-out English, in this precision and in fp32 (the canonical graph)."""
    from graftline.runtimes.perplexity import HELD_OUT, perplexity
    from graftline.runtimes.text import Tokenizer

    text = HELD_OUT.read_text(encoding="utf-8")
    ids = np.asarray(Tokenizer.from_folder(folder / "tokenizer").encode(text, raw=True), np.int64)
    ids = ids[: min(HELD_OUT_TOKENS, session.capacity)]
    found = {dtype: perplexity(session, [ids]), "fp32": perplexity(fp32, [ids])}
    say(
        f"perplexity on {len(ids)} held-out tokens: {dtype} {found[dtype]:.2f}, "
        f"fp32 {found['fp32']:.2f}"
    )
    return {f"perplexity {name}": value for name, value in found.items()}


def whole(export: Path, session: Any, facts: Facts, dtype: str) -> str:
    """Law of the whole: the engine's logits, prompt in chunks and cache, are the unmodified
    export's."""
    from graftline.runtimes.ort import export_logits

    rows = min(24, facts.positions or 24)
    tokens = np.random.default_rng(2).integers(0, facts.vocabulary, (1, rows), dtype=np.int64)
    expected = export_logits(export, tokens)[0]
    session.reset(1)
    first = session.prefill([tokens[0, : rows // 2]]).logits[0].copy()
    rest = session.score(tokens[:, rows // 2 :]).logits[0]
    both = min(rows - rows // 2 + 1, len(expected))  # an export may give the last row only
    got, expected = np.concatenate([first, rest])[-both:], expected[-both:]
    gap = float(np.max(np.abs(got - expected)))
    agree = int(np.sum(got.argmax(-1) == expected.argmax(-1)))
    if dtype == "fp32" and not gap <= 1e-3:
        raise LawBroken("pipeline", "whole", "logits", f"{gap:.3g} > 0.001 from the export")
    return f"{len(got)} rows against the export: max difference {gap:.2g}, argmax equal in {agree}"


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
