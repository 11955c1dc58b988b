"""A whole training: texts, the host's states, the head, its folder; goes on where it stopped."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from graftline.errors import GraftlineError
from graftline.memory import give_back_memory
from graftline.models.cache import place
from graftline.models.host import Watch, silent
from graftline.models.reference import first_line
from graftline.models.training.answers import (
    Answerer,
    AnswerFile,
    Conversation,
    Sampling,
    Text,
    collect,
    plain_texts,
)
from graftline.models.training.clock import Clock
from graftline.models.training.crew import ALONE, Crew
from graftline.models.training.folder import check_out
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.head_folder import Story, write_head
from graftline.models.training.head_lesson import HeadLesson, HeadSettings, acceptance_of
from graftline.models.training.kinds import Beginning, Head
from graftline.models.training.rows import Row, read_rows, write_rows
from graftline.models.training.student import Acceptance, Student
from graftline.models.training.tensor_file import damaged, write_bytes
from graftline.models.training.trainer import Course, Trainer

ANSWERED, READ = 0.40, 0.62
"""By which share of the time the prompts are answered, and the host has read the answers."""
POSITIONS = 2048
"""Tokens of a prompt and its answer together, or of a piece of a plain text, at most."""
HELD_OUT, HELD_TOKENS = 0.05, 3072
"""The share of the texts that are held out, and at most so many tokens of them."""


@dataclass(frozen=True)
class Data:
    """Where texts come from: `conversations` that `answerer` answers, whose name is `engine`, or
    the ids of `texts` as they are (`answerer` None)."""

    conversations: Sequence[Conversation]
    answerer: Callable[[], Answerer] | None
    engine: str
    sampling: Sampling
    texts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Job:
    """A command as it was given. `checkpoint` is how the user calls the host, `folder` where its
    weights are, `minutes` None as long as it takes."""

    head: Head
    checkpoint: str
    folder: Path
    out: Path
    data: Data
    settings: HeadSettings
    minutes: float | None
    command: str


@dataclass(frozen=True)
class Trained:
    """What came of a training. `found`: held-out acceptance, None where nobody looked; `notes` are
    what else is to be known of the head."""

    out: Path
    family: str
    course: Course
    found: Acceptance | None
    size: int
    minutes: float
    notes: Mapping[str, str]


def train(job: Job, say: Watch, crew: Crew = ALONE) -> Trained:
    """Train a head and write its folder, in each process of a crew. Raises GraftlineError; a
    KeyboardInterrupt says what was kept and how to go on."""
    try:
        return _trained(job, say if crew.main else silent, crew)
    except torch.OutOfMemoryError as error:
        raise GraftlineError(
            f"the memory of {crew.device} is full ({first_line(error)}); use --device cpu, or a "
            "smaller head"
        ) from error


def _trained(job: Job, say: Watch, crew: Crew) -> Trained:
    host = FrozenHost(
        job.folder, job.settings.bf16, job.head.taps, Path(job.checkpoint).name, crew.device
    )
    run = _name(job, host)
    crew.shared(lambda: check_out(job.out, run, "a head"))
    folder = place("training") / run
    limit = None if job.minutes is None else 60.0 * job.minutes
    clock = Clock.open(folder / "clock.json", limit)
    if crew.count > 1:
        say(f"{crew.count} processes train; this one answers and reads alone, the others wait")
    try:
        rows, words = _rows(job, host, folder, clock, say, crew)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            "what was answered and read so far is kept; run the same command to go on"
        ) from stop
    finally:
        if crew.main:
            clock.keep()
    learned, held_out = _parted(rows, job.settings.seed)
    say(f"training on {len(learned)} texts, {len(held_out)} held out; {words}")
    student = Beginning(host, learned, held_out, job.settings.seed, say).student(job.head, crew)
    del host.model  # what the student needs of it from here on, it has
    with crew.here():
        lesson = HeadLesson(student, learned, held_out, job.settings)
    trainer = Trainer(lesson, job.settings, folder / "state.safetensors", clock, crew)

    def written() -> Trained:
        return crew.shared(lambda: _written(job, trainer, student, run, words))

    try:
        trainer.run(say)
    except KeyboardInterrupt as stop:
        if not trainer.course.step:
            told = "nothing is trained yet; the data are kept: run the same command to go on"
            raise KeyboardInterrupt(told) from stop
        written()
        raise KeyboardInterrupt(
            f"{job.out} is the head as of step {trainer.course.step}; run the same command to go on"
        ) from stop
    return written()


def _written(job: Job, trainer: Trainer, student: Student, run: str, words: str) -> Trained:
    course, minutes, crew = trainer.course, trainer.clock.spent / 60, trainer.crew
    found = acceptance_of(course)
    with crew.here():
        head = student.published()
    story = Story(
        run, Path(job.checkpoint).name, job.command, words, job.settings.seed, course.step,
        course.ended or "interrupted, and can be gone on with", minutes, found, str(crew),
    )  # fmt: skip
    size = write_head(job.out, head, story)
    return Trained(job.out, head.family, course, found, size, minutes, head.notes)


def _name(job: Job, host: FrozenHost) -> str:
    """What tells a command from all others: the same one goes on where it stopped."""
    data = job.data
    rows = [(one.system, one.turns, one.take) for one in data.conversations]
    words: list[Any] = [
        host.name, asdict(job.head), asdict(job.settings), job.minutes, data.engine,
        asdict(data.sampling), rows, [list(ids) for ids in data.texts], str(job.out.absolute()),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def _rows(
    job: Job, host: FrozenHost, folder: Path, clock: Clock, say: Watch, crew: Crew
) -> tuple[list[Row], str]:
    """The rows of a run, which the main process has written, and the data in words."""
    names, words = crew.shared(lambda: _listed(job, host, folder, clock, say))
    shards = [_states() / name for name in names]
    if not crew.main and (missing := [path for path in shards if not path.exists()]):
        raise GraftlineError(
            f"process {crew.rank} finds no {missing[0]}, which the main one has written: let "
            "XDG_CACHE_HOME be a folder that all machines share"
        )
    return read_rows(shards), words


def _listed(
    job: Job, host: FrozenHost, folder: Path, clock: Clock, say: Watch
) -> tuple[list[str], str]:
    """The files of a run's rows, and the data in words; both are kept once all are there."""
    listed = folder / "data.json"
    if listed.exists():
        try:
            known = json.loads(listed.read_bytes())
            return list(known["shards"]), str(known["words"])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(listed, error) from error
    texts = _texts(job, host, clock, say)
    shards = write_rows(_states(), texts, host, clock, READ, say)
    words = _words(job, read_rows(shards))
    names = [path.name for path in shards]
    write_bytes(listed, json.dumps({"shards": names, "words": words}).encode())
    return names, words


def _states() -> Path:
    """Where rows lie."""
    return place("training") / "states"


def _texts(job: Job, host: FrozenHost, clock: Clock, say: Watch) -> list[Text]:
    data = job.data
    if data.answerer is None:
        texts = plain_texts(data.texts, min(POSITIONS, host.positions or POSITIONS))
    else:
        file = AnswerFile.open(place("training") / "answers" / f"{data.engine}.jsonl")
        until = ANSWERED
        texts = collect(data.conversations, data.answerer, file, data.sampling, clock, until, say)
        gc.unfreeze()  # whoever loads an engine freezes what is alive; this one is not used again
        gc.collect()
        give_back_memory()
    most = max((max(text.ids) for text in texts), default=0)
    if most >= host.vocabulary:
        raise GraftlineError(
            f"the texts hold the token {most}, but {job.checkpoint} has {host.vocabulary}; the "
            "bundle was not built from it"
        )
    useful = [text for text in texts if len(text.ids) - text.start > 1]
    if left_out := len(texts) - len(useful):
        say(f"left out: {left_out} answers of a token or none, which leave nothing to draft")
    if len(useful) < 2:
        raise GraftlineError(
            f"{len(useful)} texts to learn from; one is held out, so give at least 2 prompts that "
            "are answered at some length and fit the host's positions"
        )
    return useful


def _words(job: Job, rows: Sequence[Row]) -> str:
    tokens = sum(len(row) - row.start for row in rows)
    if job.data.answerer is None:
        return f"{len(rows)} plain texts of {tokens:,} tokens"
    sampled = sum(not row.greedy for row in rows)
    return (
        f"{len(rows)} answers of {tokens:,} tokens by the host itself, {sampled} of them sampled "
        f"at temperature {job.data.sampling.temperature}"
    )


def _parted(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to learn from, and some held out: the greedy ones of whole groups, where there are
    any. Raises GraftlineError where all are of one group."""
    groups = sorted({row.group for row in rows})
    if len(groups) < 2:
        raise GraftlineError("all texts answer one prompt; one is held out, so give at least 2")
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    greedy = {row.group for row in rows if row.greedy}
    able = [groups[i] for i in order if groups[i] in greedy] or [groups[i] for i in order]
    most = min(max(1, round(HELD_OUT * len(groups))), len(groups) - 1)
    chosen: set[int] = set()
    held_out: list[Row] = []
    for group in able[:most]:
        found = [row for row in rows if row.group == group and (row.greedy or not greedy)]
        if chosen and sum(map(len, [*held_out, *found])) > HELD_TOKENS:
            break
        chosen.add(group)
        held_out += found
    return [row for row in rows if row.group not in chosen], held_out
