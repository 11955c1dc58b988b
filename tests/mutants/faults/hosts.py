"""The hosts that mutants run on: tiny checkpoints on disk, each exported once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.models.decoder import TinyDecoder
from graftline.models.tiny import tiny

WIDE: Mapping[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": 700,
    "max_position_embeddings": 256,
}  # fmt: skip
TWO_KINDS = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]

FOLDERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "gemma2": ("gemma2", {"sliding_window": 40, "head_dim": 16, "query_pre_attn_scalar": 16,
                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {"sliding_window": 40, "head_dim": 16, "query_pre_attn_scalar": 16,
                               "layer_types": TWO_KINDS}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "square": ("qwen2", {"vocab_size": 64, "tie_word_embeddings": True, "num_hidden_layers": 2}),
    "bloom": ("bloom", {"n_layer": 5}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_inner": 96, "n_layer": 5, "n_positions": 256}),
    "granite": ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 5.0,
                            "residual_multiplier": 0.7, "num_hidden_layers": 2}),
    "partial": ("stablelm", {"num_hidden_layers": 2}),
}  # fmt: skip
GRAPHS: Mapping[str, TinyDecoder] = {
    "plain": TinyDecoder(layers=5, mlp=64, vocabulary=700, positions=8192),
    "window": TinyDecoder(layers=5, mlp=64, window=40, positions=8192),
    "narrow": TinyDecoder(layers=5, mlp=64, head_size=4, positions=8192),
    "alibi": TinyDecoder(layers=5, mlp=64, alibi=True, positions=8192),
}
STEEP = {"gemma2": ("gate_proj", 4.0)}
"""Weights of that name are so much larger: activations reach where approximations differ."""
HALVES = {"half": "float16", "brain": "bfloat16"}
"""llama, stored in another precision."""


@dataclass
class Hosts:
    """Checkpoints under `folder`, written when first asked for; exports are kept and copied."""

    folder: Path
    exports: dict[str, Any] = field(default_factory=dict[str, Any])

    def path(self, name: str) -> Path:
        """Where the checkpoint of that name lies."""
        place = self.folder / name
        if name in GRAPHS:
            file = place / "model.onnx"
            if not file.is_file():
                place.mkdir(parents=True)
                ir.save(GRAPHS[name].build(), file)
            return file
        if not place.is_dir():
            _write(name, place)
        return place

    def keep_exports(self, patch: pytest.MonkeyPatch) -> None:
        """torch exports every model once: what is patched and tried lies before and behind it."""
        from graftline.models import export

        real: Callable[..., Any] = export.export

        def kept(model: Any, watch: Any) -> Any:
            said = {k: v for k, v in model.config.to_dict().items() if k != "dtype"}
            key = json.dumps(said, sort_keys=True, default=str)
            if key not in self.exports:
                self.exports[key] = real(model, watch)
            made = self.exports[key]
            return export.Exported(made.model.clone(), made.weights)

        patch.setattr(export, "export", kept)


def _write(name: str, place: Path) -> None:
    if name in HALVES:
        import torch
        import transformers

        llama: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tiny("llama", place / "wide", **WIDE), dtype=getattr(torch, HALVES[name])
        )
        llama.save_pretrained(place)
        return
    family, options = FOLDERS[name]
    tiny(family, place, **{**WIDE, **options})
    if name in STEEP:
        _steepened(place / "model.safetensors", *STEEP[name])


def _steepened(file: Path, word: str, factor: float) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    save_file({n: t * np.float32(factor) if word in n else t for n, t in tensors.items()}, file,
              {"format": "pt"})  # fmt: skip


@cache
def no_bars() -> None:
    """transformers' progress bars stay out of the table."""
    from transformers.utils import logging

    logging.disable_progress_bar()
