"""The teacher of a distillation: a bundle that draws samples, and the denoiser inside as a graph
that learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.bundle.manifest import MANIFEST
from graftline.bundle.reader import Bundle
from graftline.errors import BundleError, GraftlineError, RequestError
from graftline.facts import DenoiserFacts
from graftline.owners import TARGET
from graftline.roles import DENOISED, NOISE, SAMPLE

if TYPE_CHECKING:
    from graftline.bundle.writer import Watch
    from graftline.models.spec import Spec
    from graftline.models.training.one_step import Denoiser
    from graftline.runtimes.one_pass.engine import DecodeEngine

Array = npt.NDArray[Any]
NEAR = 1e-3
"""Most that the student's first prediction may differ from ONNX Runtime's, relative to its largest
number: fp32 sums in another order."""


def teacher_bundle(checkpoint: str, spec: Path | None, say: Watch) -> tuple[Bundle, Spec | None]:
    """The bundle that draws: the given one, or one built in graftline's cache of a denoiser and its
    spec; and the spec, None for a bundle. Raises GraftlineError."""
    if (Path(checkpoint).expanduser() / MANIFEST).is_file():
        if spec is not None:
            raise GraftlineError(f"--spec is for a denoiser's graph; {checkpoint} is a bundle")
        return Bundle.open(Path(checkpoint).expanduser()), None
    from graftline.build.optimize import optimize
    from graftline.models.cache import fingerprint, place
    from graftline.models.checkpoint import open_checkpoint
    from graftline.models.spec import read_spec

    host = open_checkpoint(checkpoint).host(watch=say)
    said = host.spec() if spec is None and host.spec is not None else None
    said = read_spec(spec) if spec is not None else said
    if said is None or said.sampling is None:
        raise GraftlineError(
            f"{checkpoint}: how it is sampled is not known; say it with --spec FILE that has "
            "[sampling]"
        )
    key = fingerprint(parts_of(checkpoint, host.states, spec))
    out = place("training") / "teachers" / f"{key}.graft"
    try:
        return Bundle.open(out), said
    except BundleError:
        say("building the teacher, the whole loop as one engine (once)")
        out.parent.mkdir(parents=True, exist_ok=True)
        guided = "fold-guidance | " if said.sampling.guidance != 1 else ""
        passes = f"{guided}collapse-loop"
        return optimize(checkpoint, out, passes=passes, spec=spec, watch=say), said


def parts_of(checkpoint: str, weights: Iterable[Path], spec: Path | None) -> list[Path]:
    """The files that a teacher is made of: its weights, a folder's configs, and the spec."""
    configs = sorted(Path(checkpoint).expanduser().rglob("*.json"))
    return [*weights, *configs, *([spec] if spec is not None else [])]


def loop_facts(bundle: Bundle) -> DenoiserFacts:
    """The facts of a bundle that draws samples. Raises GraftlineError for any other, and for one
    without the export that a student is made of."""
    manifest = bundle.manifest
    stage = manifest.stages[manifest.target]
    roles = {(p.role, p.direction) for p in stage.ports}
    facts = stage.facts
    if not isinstance(facts, DenoiserFacts) or facts.sampling is None or (NOISE, "in") not in roles:
        raise GraftlineError(
            f"{bundle.path} is not a sampling loop; build it with --passes collapse-loop, or give "
            "the denoiser and its --spec"
        )
    if (DENOISED, "out") not in roles:
        raise GraftlineError(
            f"{bundle.path} gives images, not the samples that a student learns; build it without "
            "join, or give the denoiser and its --spec"
        )
    if lost := bundle.without_source():
        raise GraftlineError(f"{bundle.path}: a student is made of the export, but: {lost}")
    return facts


def student_denoiser(bundle: Bundle, engine: DecodeEngine, given: Mapping[str, Array]) -> Denoiser:
    """The export of a bundle as a graph that learns; `given` are the conditions by the names under
    which the engine takes them. Raises NotApplicable for what nothing is trained in."""
    from graftline.bundle.store import load_graph
    from graftline.models.training.graph_module import GraphModule
    from graftline.models.training.one_step import Denoiser
    from graftline.passes.anchors.denoiser import TIMESTEP, find_denoiser
    from graftline.passes.anchors.roles import OnePass
    from graftline.passes.canonical.opset.opset import open_graph

    manifest = bundle.manifest
    model = load_graph(bundle.graph(manifest.stages[manifest.target].made_of))
    open_graph(model)
    found = find_denoiser(model.graph)
    assert isinstance(found, OnePass), "a sampling loop was made of it"
    if beside := [r.owner for r in (*found.inputs, *found.others) if r.owner != TARGET]:
        raise GraftlineError(
            f"{bundle.path} holds a {beside[0]} beside the denoiser; give the denoiser and its "
            "--spec"
        )
    values = {role.name: role.value for role in found.inputs}
    port = {name: engine.names.get(name, "") for name in given}
    conditions = {
        values[canonical].name or "": name for name, canonical in port.items()
        if canonical in values
    }  # fmt: skip
    model.metadata_props.clear()
    step = values.pop(TIMESTEP)
    return Denoiser(
        GraphModule(model), values[SAMPLE].name or "", step, found.output.value.name or "",
        conditions,
    )  # fmt: skip


def checked(
    engine: DecodeEngine, given: Mapping[str, Array], size: str | None
) -> tuple[tuple[int, int, int], dict[str, Array]]:
    """The shape [C, H, W] of a sample, where the graph leaves it free by `size` ("HxW"), and the
    conditions as rows [R, ...] of the engine's types. Raises RequestError."""
    batch, *dims = engine.main.shape
    if isinstance(batch, int):
        raise RequestError(
            f"the denoiser takes batches of {batch} alone; export it with a free batch"
        )
    free = [d for d in dims if not isinstance(d, int)]
    if free and size is None:
        raise RequestError(f"the sample is {dims}; say its height and width with --size HxW")
    if not free and size is not None:
        raise RequestError(f"--size {size}: the graph is made for samples of {dims[1:]}")
    sides = dims[1:] if size is None else _sides(size)
    shape = (int(dims[0]), *(int(side) for side in sides))
    rows = {len(value) for value in given.values() if value.ndim}
    if len(rows) > 1 or any(not value.ndim for value in given.values()):
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in given.items())
        raise RequestError(f"--condition: give each as many rows as the others, not {sizes}")
    kinds = {p.name: np.dtype(p.dtype) for p in engine.ports if p.direction == "in"}

    def cast(name: str, value: Array) -> Array:
        wanted = kinds.get(engine.names.get(name, ""), value.dtype)
        fits = wanted.kind == "f" or value.dtype.kind in "iu"
        return np.ascontiguousarray(value, wanted if fits else value.dtype)  # else it is refused

    return (shape[0], shape[1], shape[2]), {n: cast(n, value) for n, value in given.items()}


def _sides(size: str) -> list[int]:
    words = size.lower().split("x")
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        raise RequestError(f"--size {size}: use HEIGHTxWIDTH, as 32x32")
    return [int(word) for word in words]


def student_spec(denoiser: Denoiser, facts: DenoiserFacts, teacher: Spec | None) -> Spec:
    """The spec that a student is sampled by: its inputs and output by name, one step, and the
    teacher's decoders."""
    from graftline.models.spec import Inputs, Outputs, Part, Spec
    from graftline.models.training.one_step import student_sampling

    assert facts.sampling is not None

    def part(one: Part | None) -> Part | None:
        return None if one is None else replace(one, graph=str(Path(one.graph).resolve()))

    names = Inputs(denoiser.sample, denoiser.timestep.name or "", tuple(denoiser.conditions))
    return Spec(
        names, Outputs(denoiser.prediction), student_sampling(facts.sampling),
        part(teacher.decoder) if teacher else None, part(teacher.replacement) if teacher else None,
    )  # fmt: skip


def check_same(denoiser: Denoiser, time: float, noise: Array, given: Mapping[str, Array]) -> None:
    """Raise GraftlineError where the graph computes something else in torch than in ONNX Runtime:
    a student would begin as another network."""
    import torch

    from graftline.runtimes.ort.held import open_model

    step = denoiser.timestep
    assert step.shape is not None
    assert step.dtype is not None
    dims = [d if isinstance(d, int) else len(noise) for d in step.shape]
    feed = {denoiser.sample: noise, step.name or "": np.full(dims, time, step.dtype.numpy())}
    feed |= {name: given[key][: len(noise)] for name, key in denoiser.conditions.items()}
    session = open_model(denoiser.graph.model, 1)
    taken = {one.name for one in session.get_inputs()}
    expected: Any = session.run(
        [denoiser.prediction], {name: value for name, value in feed.items() if name in taken}
    )[0]
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        got = denoiser.graph(tensors, denoiser.prediction).numpy()
    apart = float(np.abs(got - expected).max() / (np.abs(expected).max() or 1.0))
    if not apart <= NEAR:
        raise GraftlineError(
            f"the graph computes something else in torch than in ONNX Runtime (apart by {apart:.2g}"
            f" of its largest number, {NEAR:g} at most); please report it"
        )
