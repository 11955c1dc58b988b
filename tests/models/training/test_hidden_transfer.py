"""Hidden Transfer in training: states enter where they should, and only the maps are learned."""

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
from graftline.models.training.hidden_transfer import HiddenTransfer, entered_behind
from graftline.models.training.packs import pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from tests.models.training.conftest import MakeJob

TEXT = [9, 17, 4, 33, 88, 101, 7, 63, 20, 4, 4, 0, 17, 30]
COUNT, BEHIND = 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four layers that all count."""
    place = tmp_path_factory.mktemp("transfer") / "host"
    tiny("llama", place, vocab_size=260, num_hidden_layers=4)
    return place


def seen_by(host: FrozenHost, ids: list[int]) -> torch.Tensor:
    """What enters the block behind the first ones, over a text [N, H]."""
    found: list[torch.Tensor] = []
    hook = host.blocks[BEHIND].register_forward_pre_hook(
        lambda block, given: found.append(given[0][0])
    )
    host.read(ids)
    hook.remove()
    return found[0]


@torch.no_grad()
def test_a_chain_of_mapped_states_is_read_by_the_other_blocks(folder: Path) -> None:
    """Where a text's own states are put in the places of the last rows, the host says of these what
    it says of the chain."""
    host = FrozenHost(folder)
    student = HiddenTransfer(host, COUNT, BEHIND)
    torch.manual_seed(3)
    for matrix in student.module.maps:
        matrix.copy_(torch.randn_like(matrix) / matrix.shape[0] ** 0.5)
    place = 6
    row = seen_by(host, TEXT)[place]
    states = torch.stack([matrix @ row for matrix in student.module.maps])

    def put(block: object, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = given[0].clone()
        x[0, place + 1 :] = states
        return (x, *given[1:])

    hook = host.blocks[BEHIND].register_forward_pre_hook(put)
    wanted = host.read(TEXT[: place + 1 + COUNT])[0][place + 1 :]
    hook.remove()
    one = pack([Row(np.asarray(TEXT), host.states(TEXT), 2, 0, True)])
    got = torch.stack([depth[0, place] for depth in student.drafts(one)])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_maps_are_learned(folder: Path) -> None:
    host = FrozenHost(folder)
    student = HiddenTransfer(host, COUNT, BEHIND)
    one = pack([Row(np.asarray(TEXT), host.states(TEXT), 2, 0, True)])
    drafts = student.drafts(one.asking(2, torch.Generator().manual_seed(1)))
    sum(states.sum() for states in drafts).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.module.maps)
    assert all(p.grad is None for p in student.decoder.parameters())
    assert not student._places.numel(), "the host reads a text alone again"


def test_training_teaches_and_writes_the_files(job: MakeJob, folder: Path) -> None:
    given = replace(job("hidden-transfer", steps=12, tokens=128, rate=0.02), folder=folder)
    given = replace(given, head=replace(given.head, enter=3))
    trained = train(given, lambda line: None)
    losses = [look[1] for look in trained.course.looks]
    assert trained.family == "Hidden Transfer"
    assert losses[-1] < losses[1]
    config = json.loads((given.out / "config.json").read_text())
    assert (config["transfer_layer"], config["num_hidden_layers"]) == (3, 4)
    head = open_head(given.out)
    assert (head.family, head.settings.count, head.settings.blocks) == ("hidden-transfer", 3, 3)


def test_a_host_whose_blocks_do_not_read_what_enters_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HiddenTransfer, "_enter", lambda *given: None)
    with pytest.raises(CheckpointError, match="transfers cannot be trained beside it"):
        HiddenTransfer(FrozenHost(folder), COUNT, BEHIND)


@pytest.mark.parametrize(
    ("blocks", "count", "message"),
    [
        (4, 4, "--enter 4: the model has 4 blocks; use 1 to 3"),
        (None, 1, "states enter between blocks, and this model has one"),
    ],
)
def test_blocks_that_are_not_there_are_refused(
    blocks: int | None, count: int, message: str
) -> None:
    with pytest.raises(GraftlineError, match=message):
        entered_behind(blocks, count)


def test_states_enter_behind_half_of_the_blocks_unless_it_is_said() -> None:
    assert [entered_behind(None, count) for count in (2, 5, 30)] == [1, 2, 15]
    assert entered_behind(3, 5) == 3
