"""Accelerators in training: the stream begins as the host's, and learns what the host says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.heads.m2r2 import SCALE
from graftline.models.tiny import tiny
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.kinds import Head
from graftline.models.training.m2r2 import M2r2, accelerated_layers, final_norm
from graftline.models.training.packs import pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from tests.models.training.conftest import MakeJob

TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0, 17, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("m2r2") / "host"
    tiny("llama", place, vocab_size=260, num_hidden_layers=3, hidden_size=64)
    return place


@pytest.fixture(scope="module")
def host(folder: Path) -> FrozenHost:
    return FrozenHost(folder, taps=accelerated_layers(2))


def test_it_reads_what_enters_the_first_block_and_what_leaves_each(host: FrozenHost) -> None:
    assert host.tapped == (-1, 0, 1)
    _, taps = host.read(TEXT)
    entered, *left = taps.chunk(3, dim=-1)
    torch.testing.assert_close(entered, host.embedding[TEXT])
    with torch.no_grad():
        states = host.model(torch.tensor([TEXT]), output_hidden_states=True).hidden_states
    for one, other in zip(left, states[1:3], strict=True):
        torch.testing.assert_close(one, other[0])


def test_it_begins_as_the_plain_exit(host: FrozenHost) -> None:
    """The host's own final norm, found by what goes through it, of what leaves the exit."""
    assert final_norm(host, TEXT) is host.model.model.norm
    student = M2r2(host, 8, TEXT)
    one = pack([Row(np.asarray(TEXT), host.states(TEXT), 2, 0, True)])
    made = student.drafts(one)[0]
    left = one.taps.chunk(3, dim=-1)[-1]
    assert torch.equal(made, host.model.model.norm(left))


def test_training_teaches_and_writes_its_files(job: MakeJob, folder: Path) -> None:
    given = job("accelerator", steps=20, tokens=256, rate=1e-2)
    given = replace(given, folder=folder, head=Head("accelerator", exit=2, rank=8))
    trained = train(given, lambda line: None)
    losses = [look[1] for look in trained.course.looks]
    assert trained.family == "M2R2"
    assert losses[-1] < losses[1]
    assert dict(trained.notes) == {"exit": "behind the first 2 blocks"}
    config = json.loads((given.out / "config.json").read_text())
    assert (config["exit_layer"], config["accelerator_rank"]) == (2, 8)
    head = open_head(given.out)
    assert (head.family, head.settings.exit, head.settings.rank) == ("m2r2", 2, 8)
    scales = [float(head.tensors[f"accelerator.{n}.scale"].numpy()[0]) for n in range(2)]
    assert all(0 < abs(scale - 1) < 1 for scale in scales), "learned, from 1 on"
    assert SCALE.format(2) not in head.tensors


def test_refusals(folder: Path, host: FrozenHost) -> None:
    with pytest.raises(GraftlineError, match=r"--exit 3: the target has 3 blocks.* use 1 to 2"):
        FrozenHost(folder, taps=accelerated_layers(3))
    with pytest.raises(GraftlineError, match="--rank 65: the model's hidden states have 64"):
        M2r2(host, 65, TEXT)
    own = host.model.model.norm
    host.model.model.norm = nn.Sequential(own, nn.Hardtanh(-0.01, 0.01))
    try:
        with pytest.raises(CheckpointError, match="no norm alone stands between the model's last"):
            final_norm(host, TEXT)
    finally:
        host.model.model.norm = own
