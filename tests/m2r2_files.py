"""Files of accelerators."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.models.heads.m2r2 import DOWN, SCALE, UP

Array = npt.NDArray[np.float32]


def seeded(blocks: int, hidden: int, rank: int = 4, seed: int = 0) -> dict[str, Array]:
    """Random accelerators of the first so many blocks, under the names of their files."""
    random, made = np.random.default_rng(seed), dict[str, Array]()
    for block in range(blocks):
        made[SCALE.format(block)] = (1 + random.normal(size=1) / 4).astype(np.float32)
        for name, shape in ((DOWN, (rank, hidden)), (UP, (hidden, rank))):
            values = random.normal(size=shape) / np.sqrt(shape[1])
            made[name.format(block)] = values.astype(np.float32)
    return made


def write_m2r2(folder: Path, tensors: Mapping[str, Array], layers: int, **config: Any) -> Path:
    """A folder with config.json and model.safetensors, for a host of so many layers."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rank, hidden = next(t.shape for name, t in tensors.items() if ".down." in name)
    known = {"hidden_size": hidden, "num_hidden_layers": layers, "accelerator_rank": rank,
             "exit_layer": sum(".scale" in name for name in tensors), "rms_norm_eps": 1e-6,
             **config}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(known))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder
