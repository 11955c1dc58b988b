"""Hydra heads in training are the published ones, and read what was drafted before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.models.heads import open_head
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.hydra import Hydra
from graftline.models.training.packs import Pack, pack
from graftline.models.training.rows import Row
from graftline.models.training.run import train
from tests.models.heads.reference_hydra import Stacks
from tests.models.heads.reference_layers import Sizes
from tests.models.training.conftest import MakeJob
from tests.models.training.predictable import HIDDEN, VOCABULARY

HEADS = 3
TEXT = [3, 8, 7, 1, 9, 250, 4, 4, 0]


def text(host: FrozenHost) -> Pack:
    return pack([Row(np.asarray(TEXT), host.states(TEXT), 2, 0, True)])


@pytest.mark.parametrize("biased", [False, True])
def test_what_is_published_computes_what_was_trained(host_folder: Path, biased: bool) -> None:
    host = FrozenHost(host_folder)
    host.bias = torch.randn(VOCABULARY) if biased else None
    student = Hydra(host, HEADS)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    sizes = Sizes(hidden=HIDDEN, heads=4, kv_heads=2, head_size=8, mlp=48, vocabulary=VOCABULARY)
    reference = Stacks(sizes, HEADS, 1)
    published = student.published().tensors
    reference.load_state_dict({name: value.detach() for name, value in published.items()})
    one = text(host)
    ahead = [one.shifted(one.ids, head + 1) for head in range(HEADS)]
    embeddings = torch.stack([host.embedding[ids] for ids in ahead], dim=2)
    some = torch.tensor([7, 3, 200])
    with torch.no_grad():
        wanted = reference(one.taps, embeddings)
        for depth, states in enumerate(student.drafts(one)):
            # sums of up to 4 H = 128 numbers in another order
            mine = student.scores(states[0], depth, None)
            torch.testing.assert_close(mine, wanted[depth][0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(student.scores(states[0], depth, some), mine[:, some])


def test_it_begins_as_the_host(host_folder: Path) -> None:
    host = FrozenHost(host_folder)
    one = text(host)
    for states in Hydra(host, HEADS).drafts(one):
        torch.testing.assert_close(states, one.taps)


def test_its_folder_opens_as_what_it_is(job: MakeJob) -> None:
    given = job("hydra", steps=2)
    train(given, lambda line: None)
    head = open_head(given.out)
    settings = head.settings
    assert (head.family, settings.architecture, settings.heads) == ("hydra", "mlp", 3)
    assert (settings.layers, settings.grounded) == (1, True)
