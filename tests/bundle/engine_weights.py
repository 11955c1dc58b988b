"""The weights of a bundle, and what its engine generates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graftline.bundle.reader import Bundle
from graftline.runtimes.load import load

PROMPT = np.arange(9)


def weights(bundle: Bundle) -> dict[str, int]:
    """The files of a bundle that are weights, and their bytes."""
    return {
        rel: entry.size for rel, entry in bundle.manifest.files.items()
        if rel.endswith((".weights", ".safetensors"))
    }  # fmt: skip


def generated(path: Path) -> list[int]:
    return load(path).generate(PROMPT, max_new_tokens=12, ignore_eos=True).tokens
