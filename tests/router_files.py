"""Files of routers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.models.heads.router import BIAS, WEIGHT

Array = npt.NDArray[np.float32]


def seeded(layers: Sequence[int], hidden: int, bias: float = 0.0) -> dict[str, Array]:
    """Random routers, undecided but for `bias`."""
    random, made = np.random.default_rng(0), dict[str, Array]()
    for layer in layers:
        row = random.normal(size=(1, hidden)) / np.sqrt(hidden)
        made[WEIGHT.format(layer)] = row.astype(np.float32)
        made[BIAS.format(layer)] = np.full(1, bias, np.float32)
    return made


def write_routers(
    folder: Path,
    tensors: Mapping[str, Array],
    blocks: int,
    routes: Sequence[Sequence[int]],
    **config: Any,
) -> Path:
    """A folder with config.json and model.safetensors, for a host of so many blocks."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    hidden = next(t.shape[1] for name, t in tensors.items() if name.endswith("weight"))
    known = {"hidden_size": hidden, "num_hidden_layers": blocks, "routes": list(map(list, routes)),
             **config}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(known))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder
