"""The attention of draft heads as torch modules, in the forms that published heads have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)

from graftline.models.heads.block import Block, Rope
from graftline.models.heads.latent import Latent

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [B, N, rotated numbers]."""
LATENT_EPSILON = 1e-6
"""Of the norms within latent attention, whatever the layer's is."""


class OffsetNorm(LlamaRMSNorm):
    """An RMS norm over the stored weight + `offset`."""

    def __init__(self, size: int, epsilon: float, offset: float) -> None:
        super().__init__(size, epsilon)
        self.offset = offset

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (x * (self.offset + self.weight.float())).type_as(hidden_states)


def rms_norm(size: int, block: Block) -> LlamaRMSNorm:
    """A norm over `size` numbers, of the layer's epsilon and offset."""
    if not block.norm_offset:
        return LlamaRMSNorm(size, block.epsilon)
    return OffsetNorm(size, block.epsilon, block.norm_offset)


class DraftAttention(LlamaAttention):
    """Attention over inputs of `width` numbers. Of queries and keys [B, heads, N, D], the first
    `rope.size` numbers of each head are rotated."""

    def __init__(
        self, config: LlamaConfig, layer: int, block: Block, width: int, output_bias: bool
    ) -> None:
        super().__init__(config, layer)
        self.rope, self.gated = block.rope, block.gated
        rows = block.heads * block.head_size * (2 if block.gated else 1)
        keys = block.kv_heads * block.head_size
        self.q_proj = nn.Linear(width, rows, bias=block.bias)
        self.k_proj = nn.Linear(width, keys, bias=block.bias)
        self.v_proj = nn.Linear(width, keys, bias=block.bias)
        self.o_proj = nn.Linear(block.heads * block.head_size, block.hidden, bias=output_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if block.query_norm:
            self.q_norm = rms_norm(block.head_size, block)
            self.k_norm = rms_norm(block.head_size, block)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: torch.Tensor,
        angles: Angles,
        mask: torch.Tensor | None,
        keyed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, N, width] -> [B, N, H]; `keyed` [B, N, width]: what keys and values are of, where
        that is not x."""
        keyed = x if keyed is None else keyed
        query = self.q_proj(x).unflatten(-1, (self.config.num_attention_heads, -1))
        query, gate = query.split(self.head_dim, dim=-1) if self.gated else (query, None)
        key, value = (
            part(keyed).unflatten(-1, (-1, self.head_dim)) for part in (self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        query, key = rotated(query, key, angles, self.rope)
        mixed = attended(self, query, key, value, mask, self.scaling)
        if gate is not None:
            mixed = mixed * torch.sigmoid(gate)
        return self.o_proj(mixed.flatten(2))


class LatentAttention(nn.Module):
    """Multi-head latent attention (arXiv 2405.04434): see `Latent`. Keys and values of a cache are
    equally wide here: the narrower of the two is filled with zeros."""

    def __init__(self, config: LlamaConfig, latent: Latent, hidden: int) -> None:
        super().__init__()
        self.config, self.latent = config, latent
        self.num_key_value_groups = 1
        heads, size = latent.heads, latent.plain + latent.rope.size
        if latent.query_rank is None:
            self.query = nn.Linear(hidden, heads * size, bias=False)
        else:
            self.query_down = nn.Linear(hidden, latent.query_rank, bias=False)
            self.query_down_norm = LlamaRMSNorm(latent.query_rank, LATENT_EPSILON)
            self.query_up = nn.Linear(latent.query_rank, heads * size, bias=False)
        self.key_value_down = nn.Linear(hidden, latent.rank + latent.rope.size, bias=False)
        self.key_value_norm = LlamaRMSNorm(latent.rank, LATENT_EPSILON)
        made = heads * (latent.plain + latent.value)
        self.key_value_up = nn.Linear(latent.rank, made, bias=False)
        self.output = nn.Linear(heads * latent.value, hidden, bias=False)

    def forward(self, x: torch.Tensor, angles: Angles, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, N, H] -> [B, N, H]."""
        latent = self.latent
        query = self._queries(x).unflatten(-1, (latent.heads, -1)).transpose(1, 2)
        low, turning = self.key_value_down(x).split([latent.rank, latent.rope.size], dim=-1)
        made = self.key_value_up(self.key_value_norm(low)).unflatten(-1, (latent.heads, -1))
        key, value = made.transpose(1, 2).split([latent.plain, latent.value], dim=-1)
        query, query_turning = query.split([latent.plain, latent.rope.size], dim=-1)
        query_turning, turning = rotated(query_turning, turning[:, None], angles, latent.rope)
        query = torch.cat([query, query_turning], dim=-1)
        key = torch.cat([key, turning.expand(-1, latent.heads, -1, -1)], dim=-1)
        width = max(key.shape[-1], latent.value)
        query, key, value = (
            pad(part, (0, width - part.shape[-1])) for part in (query, key, value)
        )
        mixed = attended(self, query, key, value, mask, latent_scaling(latent))
        return self.output(mixed[..., : latent.value].flatten(2))

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        if self.latent.query_rank is None:
            return self.query(x)
        return self.query_up(self.query_down_norm(self.query_down(x)))


def latent_scaling(latent: Latent) -> float:
    """What scores of latent attention are multiplied by."""
    scaling = (latent.plain + latent.rope.size) ** -0.5
    every = latent.rope.numbers.get("mscale_all_dim", 0.0)
    factor = latent.rope.numbers.get("factor", 1.0)
    if every and factor > 1.0:
        scaling *= (0.1 * every * math.log(factor) + 1.0) ** 2
    return scaling


def rotated(
    query: torch.Tensor, key: torch.Tensor, angles: Angles, rope: Rope
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [B, heads, N, D] at their positions. Neighbours that turn together are first
    laid half of the turning part apart: in both alike, which changes no product of the two."""
    rest = query[..., rope.size :], key[..., rope.size :]
    query, key = query[..., : rope.size], key[..., : rope.size]
    if rope.interleaved:
        query, key = (
            part.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for part in (query, key)
        )
    query, key = apply_rotary_pos_emb(query, key, *angles)
    if rest[0].shape[-1]:
        query, key = torch.cat([query, rest[0]], dim=-1), torch.cat([key, rest[1]], dim=-1)
    return query, key


def attended(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Values mixed by attention, [B, N, heads, D], by the implementation that the config names."""
    name = module.config._attn_implementation
    attention: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
    return attention(module, query, key, value, mask, dropout=0.0, scaling=scaling)[0]
