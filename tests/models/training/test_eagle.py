"""Roll-outs in training are what the published layer computes when it drafts a chain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import graftline.models.export.host_model  # noqa: F401  registers the attention of the module
from graftline.models.training.eagle import Eagle, roll_out
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.fspad import Fspad

LENGTH, STEPS = 9, 3


def given(
    host_folder: Path, kind: type[Eagle] = Eagle
) -> tuple[Eagle, torch.Tensor, torch.Tensor]:
    """A head whose every weight counts, ids [2, L] and taps [2, L, H]."""
    torch.manual_seed(1)
    head = kind(FrozenHost(host_folder))
    with torch.no_grad():
        for parameter in head.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return head, torch.randint(0, 260, (2, LENGTH)), torch.randn(2, LENGTH, 32)


@pytest.mark.parametrize("kind", [Eagle, Fspad])
def test_every_roll_out_is_the_layer_on_its_own_features(
    host_folder: Path, kind: type[Eagle]
) -> None:
    head, ids, taps = given(host_folder, kind)
    with torch.no_grad():
        states = roll_out(head.module, ids, taps, STEPS)
        for begun in range(LENGTH - STEPS):
            features = taps[:, : begun + 1]
            for step in range(STEPS):
                place = begun + step
                out = head.module(
                    ids[:, : place + 1], None, torch.arange(place + 1)[None].expand(2, -1), features
                )
                # sums of H = 32 and 64 numbers in another order
                torch.testing.assert_close(
                    states[step][:, place] @ head.module.lm_head.weight.T, out.logits[:, -1],
                    rtol=1e-4, atol=1e-4,
                )  # fmt: skip
                features = torch.cat([features, out.state[:, -1:]], dim=1)


def test_padding_behind_a_text_changes_nothing(host_folder: Path) -> None:
    head, ids, taps = given(host_folder)
    with torch.no_grad():
        short = roll_out(head.module, ids[:, :5], taps[:, :5], STEPS)
        long = roll_out(head.module, ids, taps, STEPS)
    for one, other in zip(short, long, strict=True):
        torch.testing.assert_close(one, other[:, :5], rtol=1e-5, atol=1e-5)


def test_the_hosts_own_weights_are_neither_learned_nor_published(host_folder: Path) -> None:
    head = given(host_folder)[0]
    learned = {n for n, p in head.module.named_parameters() if p.requires_grad}
    assert not {"embedding.weight", "lm_head.weight"} & learned
    names = set(head.published().tensors)
    assert len(names) == len(learned) == 10
    assert {"fc.weight", "fc.bias", "layers.0.self_attn.q_proj.weight"} < names
    assert not any("embed" in name or "lm_head" in name for name in names)
