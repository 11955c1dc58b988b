"""The folder of a distilled student: its graph, the spec that it is sampled by, and a card."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graftline.errors import GraftlineError
from graftline.models.spec import Spec, spec_text
from graftline.models.training.folder import CARD, machine, mark, put, versions

GRAPH, SPEC = "student.onnx", "spec.toml"
INLINE = 1 << 30
"""Bytes of weights from which on they lie in a file beside the graph: protobuf ends at 2 GB."""


@dataclass(frozen=True)
class Story:
    """What a card says of a student. `told` are the errors on held-out noise, in words."""

    run: str
    teacher: str
    command: str
    sampled: str
    pairs: int
    seed: int
    steps: int
    ended: str
    minutes: float
    told: str


def write_student(out: Path, model: ir.Model, spec: Spec, story: Story) -> int:
    """Write the folder whole or not at all, in place of an earlier one of the same run; returns the
    bytes of the graph. Raises GraftlineError on a full disk, and for weights that are not finite.
    """
    tensors = [(n, v.const_value) for n, v in model.graph.initializers.items()]
    for name, tensor in tensors:
        if tensor is not None and not _finite(tensor):
            raise GraftlineError(
                f"weight '{name}' of the student is not finite; distil again with a lower "
                "--learning-rate"
            )
    files = _files(model, sum(t.nbytes for _, t in tensors if t is not None))
    size = sum(map(len, files.values()))
    files |= {SPEC: spec_text(spec).encode(), CARD: card(story, size, out.name).encode()}
    put(out, files)
    return size


def _finite(tensor: ir.TensorProtocol) -> bool:
    import numpy as np

    return tensor.dtype != ir.DataType.FLOAT or bool(np.isfinite(tensor.numpy()).all())


def _files(model: ir.Model, weights: int) -> dict[str, bytes]:
    if weights < INLINE:
        return {GRAPH: ir.to_proto(model).SerializeToString()}
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), f"{GRAPH}.data"
        ir.save(model, folder / GRAPH, external_data=data)
        return {one: (folder / one).read_bytes() for one in (GRAPH, data)}


def card(story: Story, size: int, name: str) -> str:
    """The model card."""
    return "\n".join([
        "---", "library_name: graftline", f"base_model: {story.teacher}", "---", "",
        f"# {name}: {story.teacher} in one step", "",
        f"Distilled with `graftline distill one-step`: the graph of {story.teacher}, taught to "
        "make in one call of the same noise the sample that the whole loop makes.", "",
        "| | |", "|---|---|",
        f"| teacher | {story.teacher}, {story.sampled} |",
        f"| graph | {GRAPH}, {size / 1e6:.1f} MB |",
        f"| data | {story.pairs:,} pairs of noise and the teacher's sample |",
        f"| command | `{story.command}` |",
        f"| seed | {story.seed} |",
        f"| training | {story.steps} steps, {story.minutes:.1f} minutes in all, samples included; "
        f"ended: {story.ended} |",
        f"| on held-out noise, beside the teacher | {story.told} |",
        f"| machine | {machine()} |",
        f"| versions | {versions()} |",
        "| licence | not stated by the tool: choose one that the teacher's allows |", "",
        f"Use: `graftline optimize {name}/{GRAPH} -o out.graft --spec {name}/{SPEC} --passes "
        "collapse-loop`", "",
        mark(story.run), "",
    ])  # fmt: skip
