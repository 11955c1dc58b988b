"""Files of Hydra's heads as they are published: grounded mlp heads, and those behind a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.medusa_files import Tensors, write_safe
from tests.models.heads.reference_hydra import Stacks
from tests.models.heads.reference_layers import Sizes, drawn, state, written


def seeded_sequence(
    hidden: int, vocabulary: int, heads: int = 3, layers: int = 1, seed: int = 0,
    grounded: bool = True,
) -> Tensors:  # fmt: skip
    """Random heads, head i of which reads i + 1 tokens behind the state, or none of them."""
    random, found = np.random.default_rng(seed), Tensors()

    def linear(name: str, rows: int, width: int) -> None:
        weight = random.normal(size=(rows, width)) / np.sqrt(width)
        found[f"{name}.weight"] = weight.astype(np.float32)
        found[f"{name}.bias"] = (0.3 * random.normal(size=rows)).astype(np.float32)

    for head in range(heads):
        for layer in range(layers):
            width = hidden * (head + 2) if layer == 0 and grounded else hidden
            linear(f"hydra_mlp.{head}.{layer}.linear", hidden, width)
        if grounded:
            linear(f"hydra_mlp.{head}.0.res_connection", hidden, hidden * (head + 2))
        linear(f"hydra_lm_head.{head}", vocabulary, hidden)
    return found


def write_hydra(folder: Path, tensors: Tensors, **changes: Any) -> Path:
    """A folder with hydra_lm_head.safetensors and config.json."""
    heads = sum(name.startswith("hydra_lm_head") and name.endswith("weight") for name in tensors)
    layers = sum(name.startswith("hydra_mlp.0.") and name.endswith("linear.weight")
                 for name in tensors)  # fmt: skip
    config: dict[str, Any] = {
        "hydra_num_heads": heads, "hydra_num_layers": layers, "hydra_head_arch": "mlp",
        "grounded_heads": True, "hidden_state_offset": 0, **changes,
    }  # fmt: skip
    write_safe(folder, tensors, **config)
    (folder / "medusa_lm_head.safetensors").rename(folder / "hydra_lm_head.safetensors")
    return folder


def write_prefixed(
    folder: Path, sizes: Sizes, heads: int = 2, layers: int = 1, grounded: bool = True,
    **changes: Any,
) -> Stacks:  # fmt: skip
    """A folder with `prefix-mlp` heads behind a layer of a host of such sizes; their module, whose
    numbers are the file's."""
    module = drawn(Stacks(sizes, heads, layers, grounded, prefix=True)).float()
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "hydra_num_heads": heads, "hydra_num_layers": layers, "hydra_head_arch": "prefix-mlp",
        "grounded_heads": grounded, "hidden_state_offset": 0, **changes,
    }  # fmt: skip
    written(folder, config, state(module))
    return module
