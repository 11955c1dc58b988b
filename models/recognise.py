"""What is given as a checkpoint but is not one: adapters and draft heads, by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.config_file import read_json

ADAPTER = "adapter_config.json"
CONFIG_MARKS = {
    "speculators_model_type": "a draft head in the speculators format",
    "hydra_head_arch": "Hydra draft heads",
    "medusa_num_heads": "Medusa draft heads",
    "dflash_config": "a DFlash draft head",
}
"""Keys that only configs of draft heads have."""
ARCHITECTURE_MARKS = (
    (r"^Eagle3?[A-Z]\w*(ForCausalLM|Model)$|ForCausalLMEagle3?$", "an EAGLE draft head"),
    (r"^DFlash", "a DFlash draft head"),
    (r"Medusa", "Medusa draft heads"),
    (r"MLPSpeculator", "an MLP speculator draft head"),
)
TENSOR_MARKS = (
    (r"(^|\.)midlayer\.", "an EAGLE-3 draft head"),
    (r"(^|\.)d2t$", "an EAGLE-3 draft head"),
    (r"^(medusa_head\.)?\d+\.0\.linear\.weight$", "Medusa draft heads"),
    (r"^fc\.weight$", "an EAGLE draft head"),
)
"""Tensors that only draft heads have; a whole model's own are never asked."""


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError for a folder that holds an adapter, alone or over a model."""
    file = folder / ADAPTER
    if not file.is_file():
        return
    found = read_json(file)
    base = found.get("base_model_name_or_path")
    kind = found.get("peft_type") or "PEFT"
    raise CheckpointError(
        f"{folder}: a {kind} adapter ({ADAPTER}) for {base or 'another model'}, not a "
        "checkpoint; merge it into that model (peft: merge_and_unload, save_pretrained) and give "
        "the result"
    )


def refuse_head(folder: Path, config: Mapping[str, Any], tensors: Collection[str]) -> None:
    """Raise CheckpointError for the folder of a draft head, by its config or its tensors' names."""
    what = _by_config(config) or _by_tensors(tensors)
    if what is None:
        return
    base = config.get("base_model_name_or_path")
    target = f" for {base}" if isinstance(base, str) else ""
    raise CheckpointError(
        f"{folder}: {what}{target}, not a whole checkpoint; give the model that it drafts for"
    )


def _by_config(config: Mapping[str, Any]) -> str | None:
    for key, what in CONFIG_MARKS.items():
        if config.get(key) is not None:
            return f"{what} (config.json: {key})"
    for name in config.get("architectures") or ():
        for pattern, what in ARCHITECTURE_MARKS:
            if re.search(pattern, str(name)):
                return f"{what} (config.json: architectures {name})"
    return None


def _by_tensors(tensors: Collection[str]) -> str | None:
    for name in sorted(tensors):
        for pattern, what in TENSOR_MARKS:
            if re.search(pattern, name):
                return f"{what} (tensor '{name}')"
    return None
