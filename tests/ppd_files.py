"""Files of PPD's prompt tokens as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
PUBLISHED: dict[str, Any] = {
    "base_model_name_or_path": "host", "inference_mode": True, "num_exits": 1,
    "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM", "task_type": "CAUSAL_LM",
    "use_cache": True, "use_custom_lm_head": False, "use_prefix_tuning": False,
    "virtual_tokens_per_special_token": 1, "vt_attention_type": "decoder",
}  # fmt: skip


def seeded(hidden: int, count: int = 3, seed: int = 0) -> Array:
    """Random rows."""
    return np.random.default_rng(seed).normal(size=(count, hidden)).astype(np.float32)


def write_ppd(folder: Path, rows: Array, pickled: bool = False, **config: Any) -> Path:
    """A folder with adapter_model.safetensors, or .bin, and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {**PUBLISHED, "num_special_tokens": len(rows), "num_virtual_tokens": len(rows)}
    (folder / "adapter_config.json").write_text(json.dumps({**known, **config}))
    if pickled:
        import torch

        torch.save({"prompt_embeddings": torch.from_numpy(rows)}, folder / "adapter_model.bin")
    else:
        from safetensors.numpy import save_file

        save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    return folder
