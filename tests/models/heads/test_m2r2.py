"""Accelerators as they are written: what is read, and what is not hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import open_head
from graftline.models.heads.m2r2 import DOWN, SCALE, UP, AcceleratorSettings
from tests.m2r2_files import seeded, write_m2r2

HIDDEN, LAYERS = 32, 4
HOST = DecoderFacts(61, HIDDEN, LAYERS, 4, 2, 8, 256)


def test_matrices_and_scales_are_read_as_they_are(tmp_path: Path) -> None:
    tensors = seeded(2, HIDDEN)
    head = open_head(write_m2r2(tmp_path / "head", tensors, LAYERS))
    assert (head.family, head.settings) == ("m2r2", AcceleratorSettings(2, HIDDEN, 4, 1e-6))
    assert head.decided[0].startswith("accelerators of blocks, by tensor")
    assert head.decided[-1] == "accelerators of rank 4 for the first 2 of 4 blocks"
    assert len(head.tensors) == 6
    for name, part in ((SCALE, "scale"), (DOWN, "down"), (UP, "up")):
        held = head.tensors[f"accelerator.1.{part}"].numpy()
        np.testing.assert_array_equal(held, tensors[name.format(1)])
    head.check(HOST)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"exit_layer": 4}, "exit_layer=4, and num_hidden_layers=4: an exit is in front of its"),
        ({"exit_layer": 3}, "tensor 'accelerators.2.scale' is missing"),
        ({"exit_layer": 1}, "tensor 'accelerators.1.down.weight' and 2 more has no place in such"),
        ({"accelerator_rank": 8}, r"down.weight' is \[4, 32\], but .* must be \[8, 32\]"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small' is not a number"),
        ({"twist": 1}, "twist=1 is a key that such a head is not known to have"),
    ],
)
def test_what_is_not_hosted_is_said(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_m2r2(tmp_path / "head", seeded(2, HIDDEN), LAYERS, **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "\n" not in str(caught.value)


def test_another_models_and_broken_numbers_are_refused(tmp_path: Path) -> None:
    other = open_head(write_m2r2(tmp_path / "other", seeded(2, HIDDEN), 6))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers is 6, but .* needs 4"):
        other.check(HOST)
    tensors = seeded(2, HIDDEN)
    tensors[UP.format(1)][3, 1] = np.inf
    broken = open_head(write_m2r2(tmp_path / "broken", tensors, LAYERS))
    with pytest.raises(CheckpointError, match=r"'accelerator\.1\.up' holds numbers that are"):
        broken.check(HOST)
