"""LoRA-Drop's low-rank corrections (arXiv 2601.02569): for each block that tokens pass by, two
matrices A [r, H] and B [H, r].

A folder with config.json and model.safetensors, whose tensors are called as in the published code's
checkpoints, model.layers.{i}.lora_adapter.A.weight and .B.weight. The correction of a stream x is
B (A x) * lora_alpha / lora_rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize
from graftline.tensors import numbers

FAMILY = "lora-drop"
DOWN, UP = "model.layers.{}.lora_adapter.A.weight", "model.layers.{}.lora_adapter.B.weight"
ADAPTED = r"(?:model\.)?layers\.(\d+)\.lora_adapter\.A\.weight"
"""The sign of such files."""
CYCLE = 4
"""Tokens of which one is computed by all blocks, in training and when the recipe decodes."""
HARMLESS = (
    "architectures", "model_type", "base_model_name_or_path", "torch_dtype", "transformers_version",
)  # fmt: skip


@dataclass(frozen=True)
class LoraDropSettings:
    """Corrections of the 0-based blocks `layers` of a host of `hidden` numbers."""

    layers: tuple[int, ...]
    hidden: int
    rank: int


def open_lora_drop(files: HeadFiles) -> Head:
    """The corrections in such files. Raises CheckpointError.

    Tensors: low_rank.{i}.down [r, H], and low_rank.{i}.up [H, r] with the scale in it.
    """
    config = Config(str(files.path), files.config)
    hidden, blocks = config.whole("hidden_size"), config.whole("num_hidden_layers")
    rank, alpha = config.whole("lora_rank"), config.number("lora_alpha")
    layers = tuple(sorted(int(match[1]) for match in files.matching(ADAPTED)))
    if layers[-1] >= blocks:
        config.refuse(f"corrections of block {layers[-1]}, and num_hidden_layers={blocks}")
    config.must("drop_cycle", CYCLE, f"the recipe lora-drop has cycles of {CYCLE} tokens")
    config.done(HARMLESS)
    taken = Taken(files)
    for layer in layers:
        taken.take(DOWN.format(layer), f"low_rank.{layer}.down", (rank, hidden))
        taken.take(UP.format(layer), f"low_rank.{layer}.up", (hidden, rank))
    tensors = _scaled(taken.rest({}), alpha / rank)
    config.decide(f"corrections of rank {rank} for {len(layers)} of {blocks} blocks")
    sizes = (
        HostSize("config.json: hidden_size", hidden, "hidden"),
        HostSize("config.json: num_hidden_layers", blocks, "layers"),
    )
    settings = LoraDropSettings(layers, hidden, rank)
    return Head(FAMILY, files.path, settings, (), tensors, sizes, tuple(config.decided))


def _scaled(
    tensors: Mapping[str, ir.TensorProtocol], scale: float
) -> dict[str, ir.TensorProtocol]:
    """The same with `scale` in the second matrix of each pair: they are small, and read here."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".up") and scale != 1:
            scaled = (numbers(tensor) * np.float32(scale)).astype(np.float32)
            found[name] = ir.tensor(scaled, name=name)
    return found
