"""Kangaroo's adapter (arXiv 2404.18911): one attention layer and two norms behind a host's exit.

The published folder has config.json, a Llama config of one layer, and pytorch_model.bin. The layer
has no MLP; the host's lm_head scores what the last norm gives. Which exit it was trained behind the
published config does not say; heads trained here say it with `exit_layer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.block import (
    Block,
    Layer,
    Rope,
    read_block,
    read_windows,
    take_layer,
)
from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize

FAMILY = "kangaroo"
PLACE = "layers.0"
EXIT_LAYER = "exit_layer"
"""The key of config.json that says after how many of the host's blocks the adapter stands."""
THETA = 10000.0
"""The base of its rotary frequencies: the published code reads no other from a config."""
HARMLESS = {r"layers\.0\.self_attn\.rotary_emb\.inv_freq": "computed from the config"}
SIGNS = (f"{PLACE}.self_attn.o_proj.weight", f"{PLACE}.input_layernorm.weight", "norm.weight")
WITHOUT = (
    "fc.weight", "embed_tokens.weight", "lm_head.weight",
    f"{PLACE}.post_attention_layernorm.weight", f"{PLACE}.hidden_norm.weight",
)  # fmt: skip
"""What other heads of a Llama layer have."""


@dataclass(frozen=True)
class KangarooSettings:
    """An adapter of these sizes; `exit`: after how many of the host's blocks it stands, None where
    the files do not say."""

    block: Block
    vocabulary: int
    exit: int | None


def is_kangaroo(files: HeadFiles) -> str:
    """The sign of an adapter: a Llama layer with a norm before it and none behind, and a last norm.
    """
    if any(map(files.has, WITHOUT)) or not all(map(files.has, SIGNS)):
        return ""
    return f"tensor '{SIGNS[0]}', and no norm behind the attention"


def open_kangaroo(files: HeadFiles) -> Head:
    """The adapter in such files. Raises CheckpointError.

    Tensors: adapter.norm, adapter.final_norm [H]; adapter.query, adapter.key, adapter.value,
    adapter.output [out, in].
    """
    config = Config(str(files.path), files.config)
    if (layers := config.whole("num_hidden_layers")) != 1:
        config.refuse(f"num_hidden_layers={layers}; an adapter is one layer of attention")
    block, vocabulary = read_block(config), config.whole("vocab_size")
    if block.head_size * block.heads != block.hidden:
        config.refuse(
            f"head_dim={block.head_size}, but the published code has {block.heads} heads of "
            f"{block.hidden // block.heads} numbers"
        )
    if block.rope != Rope(THETA, block.head_size):
        config.refuse(
            f"rotary positions {block.rope}, but the published code always has the base "
            f"{THETA:.0f} and no scaling"
        )
    if any(read_windows(config, layers)):
        config.refuse("sliding windows in an adapter, whose code has none, are not hosted")
    config.must("attention_bias", False, "an adapter with biases")
    exit_layer = config.whole(EXIT_LAYER) if config.has(EXIT_LAYER) else None
    taken = Taken(files)
    norms = {"input_layernorm": "norm"}
    take_layer(taken, block, Layer(PLACE, "adapter", block.hidden, norms), mlp=False)
    taken.take("norm.weight", "adapter.final_norm.weight", [block.hidden])
    tensors = {k.removesuffix(".weight"): v for k, v in taken.rest(HARMLESS).items()}
    config.done((EXIT_LAYER,))
    place = f"after {exit_layer} blocks" if exit_layer else "no exit named: --exit says it"
    config.decide(f"reads what leaves the exit ({place}); the host's lm_head scores")
    sizes = (
        HostSize("config.json: hidden_size", block.hidden, "hidden"),
        HostSize("config.json: vocab_size", vocabulary, "vocabulary"),
    )
    settings = KangarooSettings(block, vocabulary, exit_layer)
    return Head(FAMILY, files.path, settings, (), tensors, sizes, tuple(config.decided))
