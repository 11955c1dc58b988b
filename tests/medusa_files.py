"""Files of Medusa heads as they are published, seeded or right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]


def seeded(
    hidden: int, vocabulary: int, heads: int = 3, layers: int = 1, own: bool = True, seed: int = 0
) -> Tensors:
    """Random heads; with a matrix of their `own` they are V1, without V2."""
    random = np.random.default_rng(seed)
    found: Tensors = {}
    for head in range(heads):
        for layer in range(layers):
            weight = random.normal(size=(hidden, hidden)) / np.sqrt(hidden)
            found[f"{head}.{layer}.linear.weight"] = weight.astype(np.float32)
            bias = 0.3 * random.normal(size=hidden)
            found[f"{head}.{layer}.linear.bias"] = bias.astype(np.float32)
        if own:
            matrix = random.normal(size=(vocabulary, hidden)) / np.sqrt(hidden)
            found[f"{head}.{layers}.weight"] = matrix.astype(np.float32)
    return found


def bigrams(vocabulary: int, rank: int = 4, size: float = 1.0, seed: int = 1) -> Tensors:
    """A random bigram matrix of that rank, whose numbers have that size."""
    random = np.random.default_rng(seed)
    pair = size * random.normal(size=(2, vocabulary, rank)) / np.sqrt(rank)
    names = (f"markov_head.markov_w{n}.weight" for n in (1, 2))
    return dict(zip(names, pair.astype(np.float32), strict=True))


def fitted(states: Array, tokens: Sequence[int], vocabulary: int, heads: int = 3) -> Tensors:
    """V1 heads whose matrix is the least-squares fit of what comes i + 2 places behind each row of
    a text: `states` [N, H] and `tokens` [N]. Their layer leaves the state as it is."""
    found: Tensors = {}
    width = states.shape[1]
    for head in range(heads):
        known = len(tokens) - 2 - head
        wanted = np.zeros((known, vocabulary), np.float32)
        wanted[np.arange(known), tokens[2 + head :]] = 1.0
        matrix = np.linalg.lstsq(states[:known].astype(np.float64), wanted, rcond=None)[0].T
        found[f"{head}.0.linear.weight"] = np.zeros((width, width), np.float32)
        found[f"{head}.0.linear.bias"] = np.zeros(width, np.float32)
        found[f"{head}.1.weight"] = (20.0 * matrix).astype(np.float32)
    return found


def write_pickled(folder: Path, tensors: Mapping[str, Array], **config: Any) -> Path:
    """A folder with medusa_lm_head.pt and config.json."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, folder / "medusa_lm_head.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_safe(folder: Path, tensors: Mapping[str, Array], **config: Any) -> Path:
    """The same with medusa_lm_head.safetensors."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, folder / "medusa_lm_head.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
