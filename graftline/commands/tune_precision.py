"""`graftline tune --precision`: speed and perplexity of every precision here, and the one to keep.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.errors import BundleError, GraftlineError
from graftline.owners import TARGET
from graftline.targets import CPU, QUANTIZE

if TYPE_CHECKING:
    import onnx_ir as ir

    from graftline.build.compiled import Compiler
    from graftline.bundle.reader import Bundle
    from graftline.bundle.weight_file import WeightFile
    from graftline.runtimes.ort.session import OrtSession
    from graftline.runtimes.study.frontier import Point

Watch = Callable[[str], None]
FULL = "fp32"
FINER = "quantize{algorithm=gptq,block=0,head_bits=8,embedding=true}"
PRECISIONS = {
    FULL: (FULL, ""),
    "int8": ("int8", QUANTIZE["int8"]),
    "int4": ("int4", QUANTIZE["int4"]),
    "int4, a sixth of the blocks in int8": ("int4", FINER.replace("}", ",wide=0.16}")),
    "int4, only the head in int8": ("int4", FINER),
    "int4, the same with the head in int4": ("int4", FINER.replace("head_bits=8", "wide=0.16")),
    "int4, rounded to nearest": ("int4", "quantize{bits=4,embedding=true}"),
}
"""By the name that is printed: the dtype of a bundle, and the pass that makes it."""
TOKENS = 500
"""Tokens of the held-out text, as many as `optimize` reads."""


def tune_precision(path: Path, most_loss: float, threads: int | None, watch: Watch) -> Outcome:
    """Measure every precision of a bundle's model on this machine; make the bundle again with the
    fastest whose perplexity is above fp32's by `most_loss` (a share) at most.

    Raises GraftlineError for a bundle whose precision cannot be changed, BundleError for one that
    lacks what it was made from. The bundle stays as it was until the new one is finished.
    """
    from graftline.build.compiled import Compiler
    from graftline.bundle.manifest import EXPORT
    from graftline.bundle.reader import Bundle
    from graftline.bundle.store import load_graph
    from graftline.runtimes.study import frontier

    bundle = Bundle.open(path, verify=False)
    _check(bundle)
    text = _text(bundle)
    compiler = Compiler(load_graph(bundle.graph(EXPORT)), watch)
    with _sessions(bundle, compiler, len(text), threads, watch) as sessions:
        points = frontier.measure(sessions, text, watch)
    point = frontier.chosen(points, FULL, most_loss)
    pipeline = _pipeline(bundle.manifest.main.pipeline, PRECISIONS[point.name][1])
    changed = pipeline != bundle.manifest.main.pipeline
    if changed:
        _remake(bundle, compiler, PRECISIONS[point.name][0], pipeline, watch)
    return Outcome(points, point, changed)


@dataclass(frozen=True)
class Outcome:
    """What was measured, the precision that is kept, and whether the bundle is another one now."""

    points: list[Point]
    kept: Point
    changed: bool


def _check(bundle: Bundle) -> None:
    """Raise where the bundle's precision cannot be changed, or its source is not in it."""
    from graftline.bundle.manifest import EXPORT

    manifest = bundle.manifest
    again = f"rebuild it with another --dtype: {manifest.rebuild}"
    if manifest.target != CPU:
        raise GraftlineError(f"{bundle.path}: --precision tunes {CPU} bundles; {again}")
    kept = ("engine", "form")
    stages = manifest.stages.items()
    if more := [n for n, s in stages if s.made_of and (s.role not in kept or s.owner != TARGET)]:
        what = f"the stage {more[0]}, which shares its precision"
        raise GraftlineError(f"{bundle.path} has {what}; {again}")
    if EXPORT not in manifest.stages:
        raise BundleError(
            f"{bundle.path} was packed without its source weights, which --precision rounds again; "
            f"tune the bundle that it was packed from, or {again}"
        )
    if not (bundle.path / "tokenizer" / "tokenizer.json").is_file():
        raise BundleError(f"{bundle.path} has no tokenizer to read a text with; {again}")


def _text(bundle: Bundle) -> Any:
    """The first tokens of the held-out text."""
    import numpy as np

    from graftline.runtimes.study.perplexity import HELD_OUT
    from graftline.runtimes.text.tokenizer import Tokenizer

    text = HELD_OUT.read_text(encoding="utf-8")
    ids = Tokenizer.from_folder(bundle.path / "tokenizer").encode(text, raw=True)
    return np.asarray(ids[: min(TOKENS, bundle.manifest.decoder.positions or TOKENS)], np.int64)


def _pipeline(text: str, quantize: str) -> str:
    """The pipeline with that pass in place of its own quantize, before the lowering."""
    from graftline.passes import GRAFTS, Pipeline

    parts = [part.strip() for part in text.split("|")]
    parts = [part for part in parts if not part.startswith("quantize")]
    parts[-1:-1] = [quantize] if quantize else []
    return str(Pipeline.parse(" | ".join(parts), GRAFTS))


@contextmanager
def _sessions(
    bundle: Bundle, compiler: Compiler, capacity: int, threads: int | None, watch: Watch
) -> Generator[dict[str, tuple[OrtSession, int]]]:
    """Every precision opened, each with the bytes of its weights, in a folder that goes again."""
    from graftline.passes import GRAFTS, Pipeline
    from graftline.passes.pipeline.sample import SAMPLE

    pipeline = Pipeline.parse(bundle.manifest.main.pipeline, GRAFTS)
    rest = str(pipeline.of("graft", "fuse", "lower"))
    start = compiler.canonical(pipeline)
    sample = compiler.sample(start)
    made: dict[str, tuple[OrtSession, int]] = {}
    files: list[WeightFile] = []
    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=".precision-") as folder:
        for place, (name, (_, quantize)) in enumerate(PRECISIONS.items()):
            watch(f"making {name}")
            lowered = start.model.clone()
            lowered.meta[SAMPLE] = sample
            Pipeline.parse(_pipeline(rest, quantize), GRAFTS).run(lowered)
            made[name] = _opened(lowered, Path(folder) / str(place), files, capacity, threads)
        yield made


def _opened(
    model: ir.Model, folder: Path, files: list[WeightFile], capacity: int, threads: int | None
) -> tuple[OrtSession, int]:
    """A session of a lowered graph, written with links to the weights that it shares with the
    checkpoint and with `files`, which its own are added to."""
    from graftline.build.assemble import link_files
    from graftline.bundle.store import save_graph
    from graftline.bundle.weight_file import WeightFile
    from graftline.bundle.writer import need_space
    from graftline.facts import decoder_facts
    from graftline.ports import read_ports
    from graftline.runtimes.ort.session import OrtSession

    folder.mkdir()
    need = partial(need_space, folder, folder)
    weights = WeightFile(folder, f"{folder.name}.weights", need, tuple(files))
    linked: dict[Path, str] = {}
    link_files([model], weights, "weights", linked, partial(_link, folder))
    save_graph(model, folder / "model.onnx", weights, linked)
    files.append(weights)
    nodes = list(model.graph)
    weights = {v: v.const_value for n in nodes for v in n.inputs if v is not None and v.const_value}
    size = sum(tensor.nbytes for tensor in weights.values())
    session = OrtSession(
        folder / "model.onnx", decoder_facts(model), read_ports(model),
        capacity=capacity, threads=threads,
    )  # fmt: skip
    return session, size


def _link(folder: Path, file: Path, rel: str) -> bool:
    """A hard link of a file in a folder; False where the disk has none."""
    (folder / rel).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, folder / rel)
    except OSError:
        return False
    return True


def _remake(
    bundle: Bundle, compiler: Compiler, dtype: str, pipeline: str, watch: Watch
) -> None:
    """Compile, prove and write the bundle in another precision, in its own place."""
    from graftline.build.assemble import write_bundle
    from graftline.build.compiled import compile_stages
    from graftline.build.pipelines import StagePlan, forms_of
    from graftline.build.plan import Plan
    from graftline.bundle.manifest import EXPORT
    from graftline.bundle.writer import BundleWriter
    from graftline.models.host import Host
    from graftline.recipe import recipe

    manifest = bundle.manifest
    watch(f"making the bundle again in {dtype}")
    files = [bundle.path / rel for rel in manifest.tokenizer]
    host = Host(compiler.raw, manifest.facts, files, dict(manifest.generation))
    engine = StagePlan(manifest.target, "engine", pipeline, dtype)
    stages = engine, *forms_of(pipeline, dtype)
    plan = Plan(recipe(manifest.recipe), manifest.target, stages)
    made = compile_stages({EXPORT: compiler}, plan)
    with BundleWriter(bundle.path, watch=watch) as writer:
        new = write_bundle(writer, {EXPORT: host}, plan, made, "link", watch)
        rebuild = f"{manifest.rebuild} && graftline tune {bundle.path} --precision"
        if manifest.rebuild.endswith("--precision"):
            rebuild = manifest.rebuild
        writer.finish(replace(new, name=manifest.name, rebuild=rebuild))
