"""Files of Hidden Transfer's matrices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def seeded(hidden: int, count: int = 3, seed: int = 0) -> list[Array]:
    """Random matrices, which keep the size of a state."""
    random = np.random.default_rng(seed)
    made = [random.normal(size=(hidden, hidden)) / np.sqrt(hidden) for _ in range(count)]
    return [matrix.astype(np.float32) for matrix in made]


def write_transfers(
    folder: Path, matrices: Sequence[Array], behind: int, blocks: int, **config: Any
) -> Path:
    """A folder with config.json and model.safetensors, for a host of so many blocks, whose states
    enter behind `behind` of them."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    known = {"hidden_size": len(matrices[0]), "num_hidden_layers": blocks,
             "transfer_layer": behind, **config}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(known))
    tensors = {f"transfer.{number}.weight": matrix for number, matrix in enumerate(matrices)}
    save_file(tensors, folder / "model.safetensors")
    return folder
