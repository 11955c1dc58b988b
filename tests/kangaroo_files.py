"""Files of Kangaroo's adapters as they are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
PUBLISHED: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "initializer_range": 0.02, "intermediate_size": 64,
    "max_position_embeddings": 2048, "model_type": "llama", "num_hidden_layers": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.28.1", "use_cache": True,
}  # fmt: skip


def seeded(hidden: int, heads: int, kv_heads: int, seed: int = 0) -> dict[str, Array]:
    """Random weights under the published names."""
    random, size = np.random.default_rng(seed), hidden // heads
    shapes = {"q": (heads * size, hidden), "k": (kv_heads * size, hidden),
              "v": (kv_heads * size, hidden), "o": (hidden, heads * size)}  # fmt: skip
    made = {
        f"layers.0.self_attn.{name}_proj.weight": random.normal(size=shape) / np.sqrt(hidden)
        for name, shape in shapes.items()
    }
    for name in ("layers.0.input_layernorm.weight", "norm.weight"):
        made[name] = 1 + random.normal(size=hidden) / 10
    return {name: value.astype(np.float32) for name, value in made.items()}


def write_kangaroo(
    folder: Path,
    tensors: Mapping[str, Array],
    heads: int,
    kv_heads: int,
    vocabulary: int,
    pickled: bool = False,
    **config: Any,
) -> Path:
    """A folder with config.json and model.safetensors, or pytorch_model.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = len(tensors["layers.0.input_layernorm.weight"])
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "vocab_size": vocabulary,
             "num_key_value_heads": kv_heads}  # fmt: skip
    known = {**PUBLISHED, **sizes, **config}
    (folder / "config.json").write_text(json.dumps(known))
    if pickled:
        import torch

        made = {name: torch.from_numpy(value) for name, value in tensors.items()}
        torch.save(made, folder / "pytorch_model.bin")
    else:
        from safetensors.numpy import save_file

        save_file(dict(tensors), folder / "model.safetensors")
    return folder
