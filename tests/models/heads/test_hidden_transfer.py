"""Hidden Transfer's matrices as they are written: what is read, and what is not hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import open_head
from graftline.models.heads.hidden_transfer import TransferSettings
from tests.transfer_files import seeded, write_transfers

HIDDEN, BLOCKS = 32, 4
HOST = DecoderFacts(61, HIDDEN, BLOCKS, 4, 2, 8, 256)


def test_matrices_are_read_as_they_are(tmp_path: Path) -> None:
    matrices = seeded(HIDDEN, 2)
    head = open_head(write_transfers(tmp_path / "head", matrices, 3, BLOCKS))
    assert (head.family, head.settings) == ("hidden-transfer", TransferSettings(2, 3, HIDDEN))
    assert head.decided == (
        "Hidden Transfer's matrices, by tensor 'transfer.0.weight'",
        "2 matrices, for the tokens 2 to 3 places ahead, behind 3 of 4 blocks",
    )
    for number, matrix in enumerate(matrices):
        read = head.tensors[f"transfer.{number}.weight"].numpy()
        np.testing.assert_array_equal(read, matrix)
    head.check(HOST)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transfer_layer": 4}, "transfer_layer=4, and num_hidden_layers=4: none is left"),
        ({"transfer_layer": 0}, "transfer_layer=0 is not a whole number of 1 or more"),
        ({"transfer_layer": None}, "transfer_layer is missing"),
        ({"hidden_size": 16}, r"transfer.0.weight' is .* they do not belong together"),
        ({"twist": 1}, "twist=1 is a key that such a head is not known to have"),
    ],
)
def test_what_is_not_hosted_is_said(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_transfers(tmp_path / "head", seeded(HIDDEN), 2, BLOCKS, **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "\n" not in str(caught.value)


def test_a_matrix_too_few_another_models_and_broken_numbers_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_transfers(tmp_path / "few", seeded(HIDDEN), 2, BLOCKS)
    tensors = load_file(folder / "model.safetensors")
    del tensors["transfer.0.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'transfer.0.weight' is missing"):
        open_head(folder)
    other = open_head(write_transfers(tmp_path / "other", seeded(HIDDEN), 2, 6))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers is 6, but .* needs 4"):
        other.check(HOST)
    matrices = seeded(HIDDEN)
    matrices[1][3, 3] = np.inf
    broken = open_head(write_transfers(tmp_path / "broken", matrices, 2, BLOCKS))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        broken.check(HOST)
