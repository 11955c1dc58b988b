"""A head learns what the host will say; where it is interrupted it goes on to the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.heads import open_draft_head
from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.training import crew
from graftline.models.training import head_lesson as lesson
from graftline.models.training import run as module
from graftline.models.training import trainer as steps
from graftline.models.training.crew import ALONE
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.kinds import KINDS, Beginning, Head
from graftline.models.training.medusa import Medusa
from graftline.models.training.packs import pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from graftline.models.training.student import acceptance
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import ROUND, Known, Stops


def silent(line: str) -> None:
    """Nobody reads."""


def weights(out: Path) -> bytes:
    (file,) = out.glob("*.safetensors")
    return file.read_bytes()


ELSEWHERE = ("markov", "router", "dflash")
"""Kinds whose files are compared in their own tests: one draws nothing, another has nothing to
write after so few steps; and one that is a part of dspark's."""
FORMS = [("medusa", "v2"), ("medusa", "v1"), *((kind, "v2") for kind in
         ("hydra", "eagle", "eagle3", "dflash"))]  # fmt: skip


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_head_foresees_what_an_untrained_one_cannot(job: MakeJob, kind: str, form: str) -> None:
    given = job(kind, form)
    trained = train(given, silent)
    assert trained.found is not None
    assert min(trained.found.shares) > 0.9
    assert trained.found.tokens > 3.6
    rows = module.read_rows(sorted((module.place("training") / "states").iterdir()))
    host = FrozenHost(given.folder, taps=given.head.taps)
    fresh = Beginning(host, rows, rows, 0, silent).student(given.head, ALONE)
    before = acceptance(fresh, pack(rows))
    assert before.shares[0] < 0.2, "the head's own start knows the next token, not the one behind"


def test_medusas_folder_is_one_that_optimize_reads(job: MakeJob) -> None:
    given = replace(job(), checkpoint="models/smol")
    train(given, silent)
    head = open_draft_head(str(given.out), silent)
    assert (head.family, head.settings.heads, head.settings.shared) == ("medusa", 3, True)
    config = json.loads((given.out / "config.json").read_text())
    assert config["base_model_name_or_path"] == "smol", "as its users call it, wherever it lies"
    assert config["medusa_num_heads"] == 3
    assert config["medusa_num_layers"] == 1
    own = job(form="v1", out="own")
    train(own, silent)
    assert not open_draft_head(str(own.out), silent).settings.shared


@pytest.mark.parametrize("form", ["v2", "v1"])
def test_medusas_tensors_are_those_of_its_formula(host_folder: Path, form: str) -> None:
    """Published: h + SiLU(linear(h)), scored by the head's own matrix or the host's."""
    host = FrozenHost(host_folder)
    head = Medusa(host, 3, form)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in head.module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    text = pack([Row(np.arange(5), host.states([1, 2, 3, 4, 5]), 2, 0, True)])
    tensors, some = head.published().tensors, torch.tensor([7, 3, 200])
    for depth, states in enumerate(head.drafts(text)):
        linear = text.taps @ tensors[f"{depth}.0.linear.weight"].T
        linear = linear + tensors[f"{depth}.0.linear.bias"]
        state = text.taps + linear * torch.sigmoid(linear)
        matrix = tensors[f"{depth}.1.weight"] if form == "v1" else host.lm_head
        logits = head.scores(states[0], depth, None)
        torch.testing.assert_close(logits, (state @ matrix.T)[0])
        torch.testing.assert_close(head.scores(states[0], depth, some), logits[:, some])
    assert ("0.1.weight" in tensors) == (form == "v1")


def test_eagles_folder_opens(job: MakeJob, host_folder: Path) -> None:
    given = job("eagle", steps=2)
    train(given, silent)
    head = open_head(given.out)
    assert (head.family, head.settings.layers, head.settings.fc_bias) == ("eagle", 1, True)
    assert "layers.0.attention_norm.weight" not in head.tensors
    assert head.settings.vocabulary == FrozenHost(host_folder).vocabulary


def test_the_card_says_how_it_came_to_be(job: MakeJob) -> None:
    given = job(seed=5)
    trained = train(given, silent)
    card = (given.out / "README.md").read_text()
    assert trained.found is not None
    for words in (
        "base_model: host", "`graftline train`", "| seed | 5 |", "by the host itself",
        f"| 1 | {trained.found.shares[0]:.3f} |", "| licence |", "torch 2.", "minutes in all",
    ):  # fmt: skip
        assert words in card


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ELSEWHERE])
def test_the_same_seed_gives_the_same_bytes(job: MakeJob, kind: str) -> None:
    outs = [
        job(kind, out=name, steps=8, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for one in outs:
        train(one, silent)
    assert weights(outs[0].out) == weights(outs[1].out)
    assert weights(outs[0].out) != weights(outs[2].out)


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("medusa", "adamw"), ("hydra", "muon"), ("eagle", "adamw"), ("eagle", "muon"),
     ("eagle3", "adamw"), ("dspark", "muon")],
)  # fmt: skip
def test_interrupted_and_gone_on_with_is_uninterrupted(
    job: MakeJob, kind: str, optimizer: str
) -> None:
    whole = job(kind, out="whole", optimizer=optimizer, steps=24)
    looks = train(whole, silent).course.looks
    parts = job(kind, out="parts", optimizer=optimizer, steps=24)
    for place in (1, 3):
        with pytest.raises(KeyboardInterrupt, match="parts is the head as of step"):
            train(parts, Stops("training: step", place))
        assert weights(parts.out), "a head that can be used"
    assert train(parts, silent).course.looks == looks
    assert weights(parts.out) == weights(whole.out)


class Points:
    """Counts what a run says and what it puts on disk; at its `last` such point, which is noted in
    `seen`, comes Ctrl-C: a write is half done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int, seen: set[str]) -> None:
        self.left, self.seen = last, seen
        real = os.fsync

        def fsync(handle: int) -> None:
            self.say(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    def say(self, line: str) -> None:
        self.left -= 1
        if not self.left:
            self.seen.add(line.partition(":")[0])
            raise KeyboardInterrupt


def test_interrupted_at_every_point_it_goes_on_to_the_same_bytes(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped at its first point, then at the second of what is left, and so on."""
    monkeypatch.setattr(steps, "KEEP", 0.0)
    whole = job(out="whole", steps=5)
    train(replace(whole, data=replace(whole.data, engine="other")), silent)
    parts, stops, done, seen = job(out="parts", steps=5), 0, False, set[str]()
    while not done:
        stops += 1
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            train(parts, Points(patch, stops, seen).say)
            done = True
    for place in ("known.jsonl", ".clock.", ".state.", "medusa_lm_head"):
        assert any(place in one for one in seen), (place, stops, seen)
    for name in (p.name for p in whole.out.iterdir() if p.suffix in (".safetensors", ".json")):
        assert (parts.out / name).read_bytes() == (whole.out / name).read_bytes()
    assert not list(parts.out.parent.rglob(".*")), "no half-written file"


def test_ctrl_c_within_a_step_waits_for_its_end(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    whole = job(out="whole", steps=10)
    train(whole, silent)
    real, seen = lesson.loss_of, list[int]()

    def stopped(*given: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(lesson, "loss_of", stopped)
    parts = job(out="parts", steps=10)
    with pytest.raises(KeyboardInterrupt, match="as of step 4; run the same command to go on"):
        train(parts, silent)
    train(parts, silent)
    assert weights(parts.out) == weights(whole.out)
    assert len(seen) == 10, "no step was made twice"


def test_a_run_that_has_ended_is_not_run_again(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = job(steps=4)
    train(given, silent)
    before = weights(given.out)
    monkeypatch.setattr(lesson, "loss_of", None)
    assert train(given, silent).course.step == 4
    assert weights(given.out) == before


def test_it_ends_where_the_held_out_texts_gain_nothing(job: MakeJob) -> None:
    trained = train(job(steps=120), silent)
    assert trained.course.step < 120
    assert "no better in 4 looks" in trained.course.ended


def test_the_time_bounds_the_steps(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of which every look takes a second."""
    now = [0.0]

    def tick() -> float:
        now[0] += 0.25
        return now[0]

    given = job(steps=None, minutes=1.0, out="timed")
    monkeypatch.setattr("graftline.models.training.clock.time.monotonic", tick)
    trained = train(given, silent)
    assert 4 < trained.course.step < 240
    assert trained.course.looks[-1][0] == trained.course.step, "the last weights were looked at"
    assert trained.minutes < 1.1


def test_another_thing_at_out_is_left_alone(job: MakeJob) -> None:
    given = job(steps=2)
    given.out.mkdir()
    (given.out / "thesis.txt").write_text("years of work")
    with pytest.raises(GraftlineError, match="holds something else than a head of this command"):
        train(given, silent)
    assert [p.name for p in given.out.iterdir()] == ["thesis.txt"]


def test_too_few_texts_are_refused(job: MakeJob) -> None:
    with pytest.raises(GraftlineError, match="1 texts to learn from; one is held out"):
        train(job(count=1), silent)
    short = job(answerer=Known(length=1))
    with pytest.raises(GraftlineError, match="0 texts to learn from"):
        train(replace(short, data=replace(short.data, engine="short")), silent)


def test_matrices_that_the_memory_cannot_hold_are_refused(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "free_memory", lambda: 500_000)
    with pytest.raises(GraftlineError, match=r"3 matrices of 260 x 32 need 0\.0 GB to be learned"):
        train(job(form="v1"), silent)


def test_tokens_of_another_model_are_refused(job: MakeJob) -> None:
    given = job()
    data = replace(given.data, answerer=None, texts=[(1, 2, 300, 4)] * 2)
    with pytest.raises(GraftlineError, match="hold the token 300, but host has 260"):
        train(replace(given, data=data), silent)


def test_plain_texts_are_learned_as_they_are(job: MakeJob) -> None:
    given = job()
    texts = [tuple((i + k) % ROUND for k in range(30)) for i in range(12)]
    data = replace(given.data, answerer=None, texts=texts)
    trained = train(replace(given, data=data), silent)
    assert trained.found is not None
    assert min(trained.found.shares) > 0.9
    assert "12 plain texts of 348 tokens" in (given.out / "README.md").read_text()


def test_a_damaged_state_is_one_line(job: MakeJob, cache: Path) -> None:
    given = job(steps=4)
    train(given, silent)
    (state,) = cache.glob("*/state.safetensors")
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"not those that were written.*delete this file"):
        train(given, silent)
    state.write_bytes(bytes(data[:100]))
    with pytest.raises(CheckpointError, match=r"state\.safetensors: damaged"):
        train(given, silent)


def test_more_heads_draft_deeper(job: MakeJob) -> None:
    given = job(steps=2)
    trained = train(replace(given, head=Head("medusa", heads=5)), silent)
    assert trained.found is not None
    assert len(trained.found.shares) == 5
