"""An exit's adapter in training: it learns what the host says, and is written as Kangaroo's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.tiny import tiny
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.kangaroo import Kangaroo, exit_layers
from graftline.models.training.kinds import Head
from graftline.models.training.losses import Scored
from graftline.models.training.packs import pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from graftline.models.training.student import acceptance, loss_of
from tests.models.training.conftest import MakeJob

TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0, 17, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kangaroo") / "host"
    tiny("llama", place, vocab_size=260, num_hidden_layers=4, hidden_size=64)
    return place


def host(folder: Path, exit: int = 2) -> FrozenHost:
    return FrozenHost(folder, taps=exit_layers(exit))


def text(host: FrozenHost, ids: list[int] = TEXT) -> Row:
    return Row(np.asarray(ids), host.states(ids), 2, 0, True)


def test_it_reads_what_leaves_the_exit_and_drafts_the_token_behind(folder: Path) -> None:
    """An adapter that gives what the host's lm_head reads is always right, at every depth."""
    frozen = host(folder)
    assert frozen.tapped == (1,)
    student = Kangaroo(frozen, TEXT)
    row = text(frozen)
    states, ids = frozen.read(TEXT)[0], list(TEXT)
    for place in range(1, len(TEXT) - 1):  # the host's own text from there on
        ids[place + 1] = int(row.states.best[place, 0])
        row = text(frozen, ids)
    states = frozen.read(ids)[0]
    one = pack([row])
    student.module.forward = lambda x: states[None]  # type: ignore[method-assign]
    found = acceptance(student, one)
    assert found.right == found.reached
    assert found.reached[0] > found.reached[2] > 0
    assert found.tokens == 4.0


def test_one_depth_is_learned_for_all(folder: Path) -> None:
    """The states of every depth are the same, so that a loss of one is that of all."""
    frozen = host(folder)
    student = Kangaroo(frozen, TEXT)
    one = pack([text(frozen), text(frozen, TEXT[:6])])
    first, *others = student.drafts(one)
    assert all(states is first for states in others)
    assert [student.weight(depth) for depth in range(student.depths)] == [1.0, 0.0, 0.0]
    chosen = Scored.choose(one.ids.reshape(-1), student.drafted, 260, 260, torch.Generator())
    loss_of(student, one, chosen, cold=False).backward()
    assert all(p.grad is not None for p in student.module.parameters())


def test_it_begins_near_the_host(folder: Path) -> None:
    """It adds nothing yet, and each channel is scaled to what the lm_head reads."""
    frozen = host(folder, 3)
    student = Kangaroo(frozen, TEXT)
    read, taps = frozen.read(TEXT)
    with torch.no_grad():
        made = student.module(taps[None])[0]
        bare = taps / taps.square().mean(-1, keepdim=True).sqrt()
    assert (made - read).square().mean() < (bare - read).square().mean()
    others = made[:, None] * torch.tensor([0.9, 1.1])[:, None]
    assert ((others - read[:, None]).square().sum((0, 2)) > (made - read).square().sum()).all()


def test_training_teaches_and_writes_kangaroos_files(job: MakeJob, folder: Path) -> None:
    given = job("exit-adapter", steps=20, tokens=256, rate=1e-2)
    given = replace(given, folder=folder, head=Head("exit-adapter", exit=3))
    trained = train(given, lambda line: None)
    losses = [look[1] for look in trained.course.looks]
    assert trained.family == "Kangaroo"
    assert losses[-1] < losses[1]
    assert dict(trained.notes) == {"exit": "behind the first 3 blocks"}
    config = json.loads((given.out / "config.json").read_text())
    assert (config["exit_layer"], config["num_hidden_layers"]) == (3, 1)
    head = open_head(given.out)
    assert (head.family, head.settings.exit) == ("kangaroo", 3)
    assert head.settings.block.hidden == 64
    again = train(given, lambda line: None)
    assert again.course.step == trained.course.step, "the same command goes on where it stopped"


def test_an_exit_without_blocks_behind_it_is_refused(folder: Path) -> None:
    with pytest.raises(GraftlineError, match=r"--exit 4: the target has 4 blocks.* use 1 to 3"):
        host(folder, 4)


def test_heads_that_do_not_share_the_width_are_refused(folder: Path) -> None:
    frozen = host(folder)
    frozen.config.num_attention_heads = 3
    with pytest.raises(CheckpointError, match="64 numbers are not 3 heads of an even number each"):
        Kangaroo(frozen, TEXT)
