"""LoRA-Drop's corrections as they are written: what is read, and what is not hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import open_head
from graftline.models.heads.lora_drop import DOWN, UP, LoraDropSettings
from tests.lora_drop_files import seeded, write_lora_drop

HIDDEN, BLOCKS = 32, 4
HOST = DecoderFacts(61, HIDDEN, BLOCKS, 4, 2, 8, 256)


def test_matrices_are_read_with_their_scale(tmp_path: Path) -> None:
    tensors = seeded((3, 1), HIDDEN)
    head = open_head(write_lora_drop(tmp_path / "head", tensors, BLOCKS, alpha=10.0))
    assert (head.family, head.settings) == ("lora-drop", LoraDropSettings((1, 3), HIDDEN, 4))
    assert head.decided[0].startswith("LoRA-Drop's corrections, by tensor")
    assert head.decided[-1] == "corrections of rank 4 for 2 of 4 blocks"
    assert len(head.tensors) == 4
    for layer in (1, 3):
        down, up = (head.tensors[f"low_rank.{layer}.{part}"].numpy() for part in ("down", "up"))
        np.testing.assert_array_equal(down, tensors[DOWN.format(layer)])
        np.testing.assert_allclose(up, 2.5 * tensors[UP.format(layer)], rtol=1e-6)
    head.check(HOST)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, "corrections of block 3, and num_hidden_layers=3"),
        ({"lora_rank": 8}, "A.weight' is .* they do not belong together"),
        ({"drop_cycle": 8}, r"drop_cycle=8 is not hosted \(the recipe lora-drop has cycles of 4"),
        ({"twist": 1}, "twist=1 is a key that such a head is not known to have"),
    ],
)
def test_what_is_not_hosted_is_said(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_lora_drop(tmp_path / "head", seeded((1, 3), HIDDEN), BLOCKS, 8.0, **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "\n" not in str(caught.value)


def test_a_matrix_too_few_or_too_many_and_another_models_are_refused(tmp_path: Path) -> None:
    tensors = seeded((1, 3), HIDDEN)
    whole = {"model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.float32)}
    lone = {name: t for name, t in tensors.items() if name != UP.format(3)}
    for number, (given, message) in enumerate(
        ((tensors | whole, "has no place in such a head"), (lone, "B.weight' is missing"))
    ):
        with pytest.raises(CheckpointError, match=message):
            open_head(write_lora_drop(tmp_path / str(number), given, BLOCKS, 8.0))
    other = open_head(write_lora_drop(tmp_path / "other", seeded((1,), HIDDEN), 6, 8.0))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers is 6, but .* needs 4"):
        other.check(HOST)
