"""Prompt tokens in training: the host reads chains as texts, learns what comes, writes PPD's files.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError
from graftline.models.heads import open_head
from graftline.models.tiny import tiny
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack, pack
from graftline.models.training.ppd import Ppd
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import write_host

TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0, 17, 30]
COUNT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four layers that all count."""
    place = tmp_path_factory.mktemp("ppd") / "host"
    tiny("llama", place, vocab_size=260, num_hidden_layers=4)
    return place


def text(host: FrozenHost, ids: list[int] = TEXT, start: int = 2) -> Row:
    return Row(np.asarray(ids), host.states(ids), start, 0, True)


@torch.no_grad()
def test_a_chain_is_read_as_a_text_that_goes_on(folder: Path) -> None:
    """Where prompt tokens have the embeddings of tokens, chains say what the host says behind the
    text with these."""
    host = FrozenHost(folder)
    student = Ppd(host, COUNT)
    tokens = [77, 5, 200]
    student.module.rows.copy_(host.embedding[tokens])
    one = pack([text(host), text(host, TEXT[:5])])
    drafts = student.drafts(one)
    for number, ids in enumerate((TEXT, TEXT[:5])):
        for place in range(1, len(ids) - 2):
            wanted = host.read([*ids[: place + 1], *tokens])[0][-COUNT:]
            got = torch.stack([states[number, place] for states in drafts])
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert not drafts[0][0, 0].any(), "nothing is drafted before the answer begins"


def test_only_the_rows_are_learned_and_only_where_it_is_asked(folder: Path) -> None:
    host = FrozenHost(folder)
    student = Ppd(host, COUNT)
    one = pack([text(host), text(host, TEXT[:6])]).asking(2, torch.Generator().manual_seed(1))
    assert one.asked is not None
    assert one.asked.sum(1).tolist() == [2, 2]
    assert not (one.asked & ~replace(one, asked=None).counted(2)).any()
    drafts = student.drafts(one)
    assert [int(states.abs().sum(-1).bool().sum()) for states in drafts] == [4] * COUNT
    sum(states.sum() for states in drafts).backward()  # type: ignore[union-attr]
    assert student.module.rows.grad is not None
    assert (student.module.rows.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None for p in student.decoder.parameters())
    few = pack([text(host, TEXT[:4])]).asking(9, torch.Generator())
    assert few.asked is not None
    assert int(few.asked.sum()) == 1, "no more than there are"


def test_training_teaches_and_writes_ppds_files(job: MakeJob, folder: Path) -> None:
    """The host says one token after the other; what it foretells gets nearer."""
    given = replace(job("ppd", steps=12, tokens=128, rate=0.1), folder=folder)
    trained = train(given, lambda line: None)
    losses = [look[1] for look in trained.course.looks]
    assert trained.family == "PPD"
    assert losses[-1] < losses[1]
    config = json.loads((given.out / "adapter_config.json").read_text())
    assert (config["num_special_tokens"], config["vt_attention_type"]) == (3, "decoder")
    head = open_head(given.out)
    assert (head.family, head.settings.count) == ("ppd", 3)
    assert trained.size < 2000, "a few rows"


@pytest.mark.parametrize(
    ("name", "value"), [("sliding_window", 8), ("layer_types", ["sliding_attention"] * 2)]
)
def test_windows_are_refused(tmp_path: Path, name: str, value: object) -> None:
    host = FrozenHost(write_host(tmp_path / "host"))
    setattr(host.config, name, value)
    with pytest.raises(CheckpointError, match="layers of this model see a window of the text"):
        Ppd(host, COUNT)


def test_a_host_that_sees_what_it_should_not_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftline.models.training import chains

    real = chains._mask
    monkeypatch.setattr(chains, "_mask", lambda *given: torch.zeros_like(real(*given)))
    with pytest.raises(CheckpointError, match="reads a text otherwise beside rows"):
        Ppd(FrozenHost(folder), COUNT)


def test_packs_without_it_ask_everywhere(folder: Path) -> None:
    one: Pack = pack([text(FrozenHost(folder))])
    assert one.asked is None
    assert int(one.counted(2).sum()) == len(TEXT) - 3
