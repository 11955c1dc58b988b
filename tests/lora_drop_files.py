"""Files of LoRA-Drop's corrections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.models.heads.lora_drop import DOWN, UP

Array = npt.NDArray[np.float32]


def seeded(layers: Sequence[int], hidden: int, rank: int = 4, seed: int = 0) -> dict[str, Array]:
    """Random matrices under the published names."""
    random, made = np.random.default_rng(seed), dict[str, Array]()
    for layer in layers:
        for name, shape in ((DOWN, (rank, hidden)), (UP, (hidden, rank))):
            values = random.normal(size=shape) / np.sqrt(shape[1])
            made[name.format(layer)] = values.astype(np.float32)
    return made


def write_lora_drop(
    folder: Path, tensors: Mapping[str, Array], blocks: int, alpha: float, **config: Any
) -> Path:
    """A folder with config.json and model.safetensors, for a host of so many blocks."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rank, hidden = next(t.shape for name, t in tensors.items() if ".A." in name)
    known = {"hidden_size": hidden, "num_hidden_layers": blocks, "lora_rank": rank,
             "lora_alpha": alpha, "drop_cycle": 4, **config}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(known))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder
