"""A distillation from samples to the student's folder; goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from graftline.errors import GraftlineError
from graftline.models.cache import place
from graftline.models.host import Watch
from graftline.models.spec import Spec
from graftline.models.training.clock import Clock
from graftline.models.training.folder import check_out
from graftline.models.training.one_step import (
    Denoiser,
    Errors,
    OneStep,
    OneStepLesson,
    StudentSettings,
    student_sampling,
)
from graftline.models.training.pairs import Drawing, Pairs, Teacher, draw_pairs, read_pairs
from graftline.models.training.student_folder import Story, write_student
from graftline.models.training.tensor_file import Array, damaged, write_bytes
from graftline.models.training.trainer import Course, Trainer
from graftline.sampling.spec import Sampling

DRAWN = 0.4
"""By which share of the time the teacher has drawn its samples."""


@dataclass(frozen=True)
class Job:
    """A command as it was given. `checkpoint` is how the user calls the teacher, which is `sampled`
    with a digest of its own; samples are of a `shape` [C, H, W]. `conditions` [R, ...] go by the
    names under which the teacher takes them. `spec` is the student's, `minutes` None as long as it
    takes."""

    checkpoint: str
    out: Path
    denoiser: Denoiser
    sampled: Sampling
    teacher: Teacher
    digest: str
    shape: tuple[int, int, int]
    conditions: Mapping[str, Array]
    spec: Spec
    settings: StudentSettings
    minutes: float | None
    command: str


@dataclass(frozen=True)
class Distilled:
    """What came of a distillation. `naive`: the teacher's own weights in one step; `found`: the
    student, None where nobody looked."""

    out: Path
    course: Course
    pairs: int
    naive: Errors
    found: Errors | None
    size: int
    minutes: float


@dataclass(frozen=True)
class _Run:
    """A distillation under way."""

    job: Job
    name: str
    lesson: OneStepLesson
    trainer: Trainer
    naive: Errors
    pairs: int

    def written(self) -> Distilled:
        """Write the student as it is."""
        job, course, minutes = self.job, self.trainer.course, self.trainer.clock.spent / 60
        found = None if course.found is None else self.lesson.errors(*course.found[0])
        told = f"{found or 'not yet measured'}; the teacher's own weights in one step: {self.naive}"
        story = Story(
            self.name, Path(job.checkpoint).name, job.command, job.sampled.told(), self.pairs,
            job.settings.seed, course.step, course.ended or "interrupted, and can be gone on with",
            minutes, told,
        )  # fmt: skip
        size = write_student(job.out, job.denoiser.graph.written(), job.spec, story)
        return Distilled(job.out, course, self.pairs, self.naive, found, size, minutes)


def distill(job: Job, say: Watch) -> Distilled:
    """Distil a student and write its folder. Raises GraftlineError; a KeyboardInterrupt says what
    was kept and how to go on."""
    student = OneStep(job.denoiser, student_sampling(job.sampled))
    name = _name(job)
    check_out(job.out, name, "a student")
    folder = place("training") / name
    limit = None if job.minutes is None else 60.0 * job.minutes
    clock = Clock.open(folder / "clock.json", limit)
    try:
        pairs = _pairs(job, folder, clock, say)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            "the samples drawn so far are kept; run the same command to go on"
        ) from stop
    finally:
        clock.keep()
    learned, held_out = pairs.parted()
    lesson = OneStepLesson(student, learned, held_out, _own(job), job.settings)
    naive = OneStep(job.denoiser, replace(job.sampled, steps=1, spacing="trailing"))
    before = lesson.errors(*lesson.held_out_errors(naive))
    say(
        f"learning from {len(learned):,} samples, {len(held_out):,} held out; the teacher's own "
        f"weights in one step: {before}"
    )
    trainer = Trainer(lesson, job.settings, folder / "state.safetensors", clock)
    run = _Run(job, name, lesson, trainer, before, len(pairs))
    try:
        run.trainer.run(say)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_interrupted(run)) from stop
    return run.written()


def _own(job: Job) -> dict[str, torch.Tensor]:
    """The conditions that the graph itself takes, by the names of its inputs."""
    names = job.denoiser.conditions
    return {name: torch.from_numpy(job.conditions[key]) for name, key in names.items()}


def _interrupted(run: _Run) -> str:
    step = run.trainer.course.step
    if not step:
        return "nothing is trained yet; the samples are kept: run the same command to go on"
    run.written()
    return f"{run.job.out} is the student as of step {step}; run the same command to go on"


def _name(job: Job) -> str:
    """What tells a command from all others: the same one goes on where it stopped."""
    words = [
        job.digest, asdict(job.settings), job.minutes, _given(job), list(job.shape),
        str(job.out.absolute()),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def _given(job: Job) -> str:
    """What tells conditions from all others."""
    found = hashlib.sha256()
    for name in sorted(job.conditions):
        value = job.conditions[name]
        found.update(f"{name} {value.dtype} {value.shape}\n".encode())
        found.update(value.tobytes())
    return found.hexdigest()


def _pairs(job: Job, folder: Path, clock: Clock, say: Watch) -> Pairs:
    """The pairs of a run; how many files is kept once all are there."""
    settings, listed = job.settings, folder / "pairs.json"
    drawing = Drawing(job.teacher, job.shape, job.conditions, settings.pairs, settings.seed)
    words = [job.digest, _given(job), list(job.shape), settings.pairs, settings.seed]
    name = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
    shards = place("training") / "pairs" / name
    if listed.exists():
        try:
            count = int(json.loads(listed.read_bytes())["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(listed, error) from error
        return read_pairs([shards / f"{n}.safetensors" for n in range(count)], drawing.rows)
    files = draw_pairs(drawing, shards, clock, DRAWN, say)
    pairs = read_pairs(files, drawing.rows)
    if len(pairs) < 2:
        raise GraftlineError(f"{len(pairs)} pair; one is held out, so draw at least 2 --pairs")
    write_bytes(listed, json.dumps({"files": len(files)}).encode())
    return pairs
