"""LoRA-Drop's corrections in training: a text is read as the recipe decodes it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.tiny import tiny
from graftline.models.training import lora_drop
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.kinds import Head
from graftline.models.training.lora_drop import LoraDrop, passed_by
from graftline.models.training.losses import Scored
from graftline.models.training.packs import pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from graftline.models.training.student import acceptance, loss_of
from tests.models.training.conftest import MakeJob

TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0, 17, 30]
START = 3


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> FrozenHost:
    place = tmp_path_factory.mktemp("lora-drop") / "host"
    tiny("llama", place, vocab_size=260, num_hidden_layers=4, hidden_size=64)
    return FrozenHost(place)


@pytest.fixture
def student(host: FrozenHost) -> LoraDrop:
    made = LoraDrop(host, "1-2", 4)
    for matrix in made.module.up:
        torch.nn.init.normal_(matrix, std=0.3)
    return made


def row(host: FrozenHost, ids: list[int]) -> Row:
    return Row(np.asarray(ids), host.states(ids), START, 0, True)


def read(student: LoraDrop, host: FrozenHost, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return student.drafts(pack([row(host, ids)]))[0][0]


def test_the_prompt_and_the_first_token_behind_it_are_the_hosts(
    student: LoraDrop, host: FrozenHost
) -> None:
    made, whole = read(student, host, TEXT), host.read(TEXT)[0]
    gaps = (made - whole).abs().amax(-1)
    assert (gaps[: START + 1] < 1e-4).all()
    assert (gaps[START + 1 :] > 1e-2).all(), "corrections, and holes that later tokens do not see"


def test_a_passed_block_gives_what_it_gave_and_its_tokens_are_not_seen_there(
    student: LoraDrop, host: FrozenHost
) -> None:
    """Without corrections, block 1 gives at positions 4 to 6 what it gave at 3; of blocks 1 and 2
    position 7 sees those up to 3, and of the others all."""
    for matrix in student.module.up:
        torch.nn.init.zeros_(matrix)
    masks, streams = dict[int, torch.Tensor](), list[torch.Tensor]()

    def note(layer: int) -> Any:
        def hook(block: Any, given: Any, named: Any) -> None:
            masks[layer] = named["attention_mask"]
            streams.extend([given[0][0]] if layer == 2 else [])

        return host.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)

    one = pack([row(host, TEXT)])
    handles = [note(layer) for layer in range(4)]
    with torch.no_grad():
        student.drafts(one)
    for handle in handles:
        handle.remove()
    (entered,) = streams
    assert all(torch.equal(entered[at], entered[START]) for at in (4, 5, 6))
    assert not torch.equal(entered[7], entered[START])
    for layer, seen in masks.items():
        wanted = [0, 1, 2, 3, 7] if layer in (1, 2) else list(range(8))
        assert (seen[0, 0, 7] == 0).nonzero()[:, 0].tolist() == wanted


def test_only_the_corrections_are_learned(student: LoraDrop, host: FrozenHost) -> None:
    one = pack([row(host, TEXT), row(host, TEXT[:7])])
    chosen = Scored.choose(one.ids.reshape(-1), student.drafted, 260, 260, torch.Generator())
    loss_of(student, one, chosen, cold=False).backward()
    learned = list(student.module.parameters())
    assert len(learned) == 4
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    assert not any(p.requires_grad for p in student.decoder.parameters())


def test_agreement_is_that_with_the_hosts_best_token(student: LoraDrop, host: FrozenHost) -> None:
    one = pack([row(host, TEXT)])
    found = acceptance(student, one)
    states = student.drafts(one)[0][0]
    best = student.scores(states, 0, None).argmax(-1)
    places = range(START, len(TEXT) - 1)
    assert found.reached == (len(places),)
    assert found.right[0] == sum(int(best[p]) == int(one.best[0, p, 0]) for p in places)


def test_training_teaches_and_writes_its_files(job: MakeJob, host: FrozenHost) -> None:
    given = job("lora-drop", steps=20, tokens=256, rate=1e-2)
    given = replace(given, folder=host.folder, head=Head("lora-drop", layers="1+2", rank=6))
    trained = train(given, lambda line: None)
    losses = [look[1] for look in trained.course.looks]
    assert trained.family == "LoRA-Drop"
    assert losses[-1] < losses[0]
    assert dict(trained.notes) == {"stands in for": "2 of 4 blocks, 3 of 4 tokens"}
    config = json.loads((given.out / "config.json").read_text())
    assert (config["lora_rank"], config["lora_alpha"], config["drop_cycle"]) == (6, 12.0, 4)
    head = open_head(given.out)
    assert (head.family, head.settings.layers, head.settings.rank) == ("lora-drop", (1, 2), 6)
    again = train(given, lambda line: None)
    assert again.course.step == trained.course.step, "the same command goes on where it stopped"


def test_layers_and_hosts_that_cannot_be_are_refused(
    host: FrozenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passed_by("", 7) == (2, 4, 6)
    for layers, message in (("0-3", "every block of 4"), ("9", "no block 9"), ("", "no block of")):
        with pytest.raises(GraftlineError, match=message):
            passed_by(layers, 2 if not layers else 4)
    with pytest.raises(GraftlineError, match="--rank 65: the model's hidden states have 64"):
        LoraDrop(host, "1", 65)
    nothing = SimpleNamespace(last_hidden_state=torch.zeros(1, 12, 64))
    monkeypatch.setattr(lora_drop, "plain_decoder", lambda host, what: lambda **given: nothing)
    with pytest.raises(CheckpointError, match="blocks are not run as they are meant"):
        LoraDrop(host, "1", 4)
