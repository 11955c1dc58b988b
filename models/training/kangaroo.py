"""Kangaroo's adapter in training (arXiv 2404.18911): one layer of attention and two norms over what
leaves the host's first blocks, which learn what the host itself says there.

Behind a text that stands, the rows of all positions are known, so that a draft of any length reads
what training read: there is nothing to roll out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from graftline.errors import CheckpointError
from graftline.exits import check_exits
from graftline.models.heads.block import Block, Rope
from graftline.models.heads.kangaroo import EXIT_LAYER, THETA
from graftline.models.training.eagle import llama_block, llama_keys
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.host_scored import HostScored
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published

EXIT = 2
"""After how many blocks, unless it is said: as published for hosts of 32."""
STEPS = 3
"""Drafts of a chain that are counted on held-out texts; one of them is learned, which is all."""
LEAST = 1e-3
"""A channel's spread below which it is not scaled up further."""


def exit_layers(blocks: int) -> Callable[[int], tuple[int, ...]]:
    """The layer whose output is read, of a host of so many: the last of the first `blocks`. Raises
    GraftlineError where none is left behind it."""

    def layers(count: int) -> tuple[int, ...]:
        check_exits((blocks,), count)
        return (blocks - 1,)

    return layers


class AdapterAttention(nn.Module):
    """Causal attention over x [B, L, H] at positions 0, 1, ..., without biases."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.size, rows = block.head_size, block.heads * block.head_size
        keys = block.kv_heads * block.head_size
        self.q_proj = nn.Linear(block.hidden, rows, bias=False)
        self.k_proj = nn.Linear(block.hidden, keys, bias=False)
        self.v_proj = nn.Linear(block.hidden, keys, bias=False)
        self.o_proj = nn.Linear(rows, block.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, H] -> [B, L, H]."""
        query, key, value = (
            part(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *self._angles(x.shape[1]))
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _angles(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [1, L, D]."""
        frequencies = THETA ** -(torch.arange(0, self.size, 2) / self.size)
        angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)[None]
        return angles.cos(), angles.sin()


class AdapterLayer(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.self_attn = AdapterAttention(block)
        self.input_layernorm = LlamaRMSNorm(block.hidden, block.epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, H] -> [B, L, H]."""
        return x + self.self_attn(self.input_layernorm(x))


class AdapterModule(nn.Module):
    """The adapter, its parameters called as in published files. It adds nothing at first."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList([AdapterLayer(block)])
        self.norm = LlamaRMSNorm(block.hidden, block.epsilon)
        nn.init.zeros_(self.get_parameter("layers.0.self_attn.o_proj.weight"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What leaves the exit [B, L, H] -> what the host's lm_head scores [B, L, H]."""
        return self.norm(self.layers[0](x))


class Kangaroo(HostScored):
    """An adapter behind the exit of a frozen host that is tapped there."""

    places = None
    depths = STEPS

    def __init__(self, host: FrozenHost, text: Sequence[int]) -> None:
        """`text`: ids by which the last norm begins near the host's states. Raises CheckpointError
        for a host whose heads do not share its width, as the published form wants it."""
        self.lm_head, self.bias, self.config = host.lm_head, host.bias, host.config
        self.vocabulary, self.source = host.vocabulary, host.source
        self.drafted, self.positions = torch.arange(host.vocabulary), max(host.positions, 1)
        self.layer = max(host.tapped)  # it is tapped at the exit alone
        self.block = adapter_block(host)
        self.module = AdapterModule(self.block)
        self._begin(host, text)

    @torch.no_grad()
    def _begin(self, host: FrozenHost, text: Sequence[int]) -> None:
        """Let each channel of the last norm begin as what is nearest, in squares, to what the
        host's lm_head reads."""
        read, taps = host.read(text)
        normed = self.module.norm(taps)
        scale = (normed * read).mean(0) / normed.square().mean(0).clamp_min(LEAST)
        self.module.norm.weight.copy_(scale)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """The same states for every depth: a draft further on is read at its own position."""
        return [self.module(pack.taps)] * STEPS

    def place(self, depth: int) -> int:
        """An exit's states stand at the token before the one that they foretell."""
        return depth + 1

    def weight(self, depth: int) -> float:
        """The first draft's states are those of all."""
        return 0.0 if depth else 1.0

    def published(self) -> Published:
        """model.safetensors under Kangaroo's names, a Llama config of one layer, and the exit."""
        keys = llama_keys(self.block, self.config, self.positions)
        del keys["rope_theta"], keys["head_dim"]  # the published code reads neither
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocabulary,
            "torch_dtype": "float16", "base_model_name_or_path": self.source,
            EXIT_LAYER: self.layer + 1, **keys,
        }  # fmt: skip
        notes = {"exit": f"behind the first {self.layer + 1} blocks"}
        tensors = dict(self.module.named_parameters())
        return Published("Kangaroo", "model.safetensors", config, tensors, notes)


def adapter_block(host: FrozenHost) -> Block:
    """A layer of the host's numbers of heads, which share the host's width between them. Raises
    CheckpointError where they cannot."""
    block = llama_block(host)
    size, left = divmod(block.hidden, block.heads)
    if left or size % 2:
        raise CheckpointError(
            f"{host.folder}: hidden states of {block.hidden} numbers are not {block.heads} heads "
            "of an even number each, which Kangaroo's form wants; train eagle or medusa"
        )
    return Block(
        block.hidden, block.heads, block.kv_heads, size, block.mlp, block.epsilon,
        Rope(THETA, size),
    )  # fmt: skip
