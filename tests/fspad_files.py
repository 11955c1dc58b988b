"""Files of an FSPAD head as they are published, seeded."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models.heads.reference_fspad import Fspad
from tests.models.heads.reference_layers import Sizes, drawn, state, written


def fspad(sizes: Sizes, loud: float = 1.0) -> Fspad:
    """A seeded head, whose states are so many times as large: the larger, the surer it is."""
    module = drawn(Fspad(sizes))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("fc.fc.") or name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter *= loud
    return module


def write_fspad(folder: Path, hidden: int, vocabulary: int, loud: float = 1.0) -> Path:
    """A head for a host of these sizes."""
    folder.mkdir(exist_ok=True)
    sizes = sizes_of(hidden, vocabulary)
    return written(folder, sizes.config(), state(fspad(sizes, loud)))


def sizes_of(hidden: int, vocabulary: int) -> Sizes:
    return Sizes(hidden=hidden, heads=2, kv_heads=1, head_size=hidden // 2, mlp=2 * hidden,
                 vocabulary=vocabulary)  # fmt: skip
