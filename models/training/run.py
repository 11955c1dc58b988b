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
from graftline.memory import free_memory, give_back_memory
from graftline.models.cache import place
from graftline.models.heads import open_head
from graftline.models.host import Watch
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
from graftline.models.training.dflash import BLOCK, DFlash
from graftline.models.training.dspark import DSpark
from graftline.models.training.eagle import Eagle
from graftline.models.training.eagle3 import Eagle3, eagle3_layers
from graftline.models.training.folder import check_out
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.fspad import Fspad
from graftline.models.training.head_folder import Story, write_head
from graftline.models.training.head_lesson import HeadLesson, HeadSettings, acceptance_of
from graftline.models.training.hidden_transfer import HiddenTransfer
from graftline.models.training.hydra import Hydra
from graftline.models.training.kangaroo import EXIT, Kangaroo, exit_layers
from graftline.models.training.lora_drop import RANK, LoraDrop
from graftline.models.training.m2r2 import M2r2, accelerated_layers
from graftline.models.training.markov import Markov
from graftline.models.training.medusa import Medusa
from graftline.models.training.ppd import Ppd
from graftline.models.training.router import SHARE, Routing
from graftline.models.training.rows import Row, read_rows, write_rows
from graftline.models.training.student import Acceptance, Student
from graftline.models.training.tensor_file import damaged, write_bytes
from graftline.models.training.trainer import Course, Trainer
from graftline.models.training.vocabulary import draft_vocabulary

KINDS = (
    "medusa", "hydra", "markov", "eagle", "eagle3", "fspad", "dflash", "dspark", "ppd",
    "hidden-transfer", "exit-adapter", "accelerator", "lora-drop", "router",
)  # fmt: skip
OVER_THREE = ("eagle3", "dflash", "dspark")
"""Kinds that read three layers, and draft a part of the vocabulary."""
ANSWERED, READ = 0.40, 0.62
"""By which share of the time the prompts are answered, and the host has read the answers."""
POSITIONS = 2048
"""Tokens of a prompt and its answer together, or of a piece of a plain text, at most."""
HELD_OUT, HELD_TOKENS = 0.05, 3072
"""The share of the texts that are held out, and at most so many tokens of them."""


@dataclass(frozen=True)
class Head:
    """The head to train: `kind` of KINDS; Medusa's `form`, how many `heads` Medusa and Hydra have,
    or prompt tokens PPD, or states to come Hidden Transfer and behind how many blocks they `enter`
    (None: half), after how many the `exit` of an adapter or of accelerators is, for which `layers`
    corrections stand in, the `rank` of these and of accelerators, which `share` of its blocks
    routers are to skip, of `layers`, for the heads in which folder (`of`) bigrams of which rank are
    made, how many rows a `block` has, and whether the host's rows of the drafted tokens, the
    `verifier_lm_head`, are left out of the file."""

    kind: str
    form: str = "v2"
    heads: int = 3
    exit: int = EXIT
    layers: str = ""
    rank: int = RANK
    enter: int | None = None
    share: float = SHARE
    of: str = ""
    block: int = BLOCK
    verifier_lm_head: bool = False

    @property
    def taps(self) -> Callable[[int], Sequence[int]] | None:
        """The layers that it reads, of a host of so many; None: what lm_head reads."""
        if self.kind == "exit-adapter":
            return exit_layers(self.exit)
        if self.kind == "accelerator":
            return accelerated_layers(self.exit)
        return eagle3_layers if self.kind in OVER_THREE else None


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


def train(job: Job, say: Watch) -> Trained:
    """Train a head and write its folder. Raises GraftlineError; a KeyboardInterrupt says what was
    kept and how to go on."""
    host = FrozenHost(job.folder, job.settings.bf16, job.head.taps, Path(job.checkpoint).name)
    run = _name(job, host)
    check_out(job.out, run, "a head")
    folder = place("training") / run
    limit = None if job.minutes is None else 60.0 * job.minutes
    clock = Clock.open(folder / "clock.json", limit)
    try:
        rows, words = _rows(job, host, folder, clock, say)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            "what was answered and read so far is kept; run the same command to go on"
        ) from stop
    finally:
        clock.keep()
    learned, held_out = _parted(rows, job.settings.seed)
    say(f"training on {len(learned)} texts, {len(held_out)} held out; {words}")
    student = _student(job, host, learned, held_out, say)
    del host.model  # what the student needs of it from here on, it has
    lesson = HeadLesson(student, learned, held_out, job.settings)
    trainer = Trainer(lesson, job.settings, folder / "state.safetensors", clock)
    try:
        trainer.run(say)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_interrupted(job, trainer, student, run, words)) from stop
    return _written(job, trainer, student, run, words)


def _interrupted(job: Job, trainer: Trainer, student: Student, run: str, words: str) -> str:
    step = trainer.course.step
    if not step:
        return "nothing is trained yet; the data are kept: run the same command to go on"
    _written(job, trainer, student, run, words)
    return f"{job.out} is the head as of step {step}; run the same command to go on"


def _written(job: Job, trainer: Trainer, student: Student, run: str, words: str) -> Trained:
    course, minutes = trainer.course, trainer.clock.spent / 60
    found = acceptance_of(course)
    head = student.published()
    story = Story(
        run, Path(job.checkpoint).name, job.command, words, job.settings.seed, course.step,
        course.ended or "interrupted, and can be gone on with", minutes, found,
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
    job: Job, host: FrozenHost, folder: Path, clock: Clock, say: Watch
) -> tuple[list[Row], str]:
    """The rows of a run, and the data in words; which they are is kept once all are there."""
    listed, states = folder / "data.json", place("training") / "states"
    if listed.exists():
        try:
            known = json.loads(listed.read_bytes())
            return read_rows([states / name for name in known["shards"]]), known["words"]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(listed, error) from error
    texts = _texts(job, host, clock, say)
    shards = write_rows(states, texts, host, clock, READ, say)
    rows = read_rows(shards)
    words = _words(job, rows)
    known = {"shards": [path.name for path in shards], "words": words}
    write_bytes(listed, json.dumps(known).encode())
    return rows, words


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


COPIES = 6
"""Of a learned weight: itself, its gradient, AdamW's two, the best so far, and what is written."""


def _student(
    job: Job, host: FrozenHost, learned: Sequence[Row], held_out: Sequence[Row], say: Watch
) -> Student:
    """The head as it begins. Raises GraftlineError where it cannot be beside this host."""
    kind, heads = job.head.kind, job.head.heads
    if kind == "medusa" and job.head.form == "v1":
        _check_memory(heads, host)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.settings.seed)
        if kind in OVER_THREE:
            words = draft_vocabulary(learned, held_out, host.vocabulary)
            say(f"draft vocabulary: {words}")
            if kind == "eagle3":
                student = Eagle3(host, words, learned[0].ids.tolist())
            elif kind == "dflash":
                student = DFlash(host, words, learned, job.head.block)
            else:
                student = DSpark(host, words, learned, job.head.block, job.head.rank)
            student.lm_head.written = not job.head.verifier_lm_head
            return student
        if kind in ("eagle", "fspad"):
            return Eagle(host) if kind == "eagle" else Fspad(host)
        if kind == "ppd":
            return Ppd(host, heads)
        if kind == "hidden-transfer":
            return HiddenTransfer(host, heads, job.head.enter)
        if kind == "exit-adapter":
            return Kangaroo(host, learned[0].ids.tolist())
        if kind == "accelerator":
            return M2r2(host, job.head.rank, learned[0].ids.tolist())
        if kind == "lora-drop":
            return LoraDrop(host, job.head.layers, job.head.rank)
        if kind == "router":
            return Routing(host, job.head.layers, job.head.share, learned)
        if kind == "markov":
            return Markov(host, open_head(job.head.of), learned, job.head.rank, say)
        return Hydra(host, heads) if kind == "hydra" else Medusa(host, heads, job.head.form)


def _check_memory(heads: int, host: FrozenHost) -> None:
    """Raise GraftlineError where the memory does not hold a matrix of its own for each head."""
    own = heads * host.lm_head.nbytes
    if COPIES * own > (free := free_memory()):
        raise GraftlineError(
            f"--form v1: {heads} matrices of {host.vocabulary} x {host.hidden} need "
            f"{COPIES * own / 1e9:.1f} GB to be learned, and {free / 1e9:.1f} GB are free; leave "
            "--form out (v2 shares the host's lm_head), or use fewer --heads"
        )
