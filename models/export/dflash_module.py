"""DFlash heads as a torch module: a block of tokens over a context of the target's hidden states.

A row whose feature is given is one of the context: its keys and values, in every layer, are those
of the feature. A row whose feature is all zeros is one of the block, and reads its token.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from graftline.models.export.eagle_module import llama_config
from graftline.models.export.host_model import ATTENTION
from graftline.models.heads.block import Block, Rope
from graftline.ports import FEATURES


@dataclass(frozen=True)
class DFlashShape:
    """`windows`: positions that each layer attends to (0: all); `output_bias`: whether the
    attention's output projection has a bias, as its other ones have by `block.bias`."""

    block: Block
    layers: int
    windows: tuple[int, ...]
    vocabulary: int
    drafted: int
    output_bias: bool = False

    @property
    def rope(self) -> Rope:
        """The rotary positions of all layers."""
        return self.block.rope


class ContextAttention(nn.Module):
    """Attention whose queries and whose keys and values are made of different rows."""

    def __init__(self, config: Any, shape: DFlashShape) -> None:
        super().__init__()
        block = shape.block
        self.config, self.size = config, block.head_size
        self.num_key_value_groups = block.heads // block.kv_heads
        wide, narrow = block.heads * self.size, block.kv_heads * self.size
        self.q_proj = nn.Linear(block.hidden, wide, bias=block.bias)
        self.k_proj = nn.Linear(block.hidden, narrow, bias=block.bias)
        self.v_proj = nn.Linear(block.hidden, narrow, bias=block.bias)
        self.o_proj = nn.Linear(wide, block.hidden, bias=shape.output_bias)
        self.normed = block.query_norm
        if self.normed:
            self.query_norm = LlamaRMSNorm(self.size, block.epsilon)
            self.key_norm = LlamaRMSNorm(self.size, block.epsilon)

    def forward(
        self, asking: torch.Tensor, asked: torch.Tensor, mask: Any, rotary: Any
    ) -> torch.Tensor:
        """Queries of `asking` [B, N, H], keys and values of `asked` [B, N, H] -> [B, N, H]."""
        query, key = self._heads(self.q_proj(asking)), self._heads(self.k_proj(asked))
        if self.normed:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *rotary)
        value = self._heads(self.v_proj(asked)).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS[ATTENTION]
        mixed = attend(self, query, key, value, mask, scaling=self.size**-0.5)[0]
        return self.o_proj(mixed.flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.size))


class ContextLayer(nn.Module):
    """A decoder layer; `given` [B, N, 1] marks the rows of the context."""

    def __init__(self, config: Any, shape: DFlashShape) -> None:
        super().__init__()
        size, epsilon = shape.block.hidden, shape.block.epsilon
        self.attention_norm = LlamaRMSNorm(size, epsilon)
        self.attention = ContextAttention(config, shape)
        self.mlp_norm = LlamaRMSNorm(size, epsilon)
        self.mlp = LlamaMLP(config)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, given: torch.Tensor, mask: Any, rotary: Any
    ) -> torch.Tensor:
        """[B, N, H] -> [B, N, H]."""
        inner = self.attention_norm(x)
        x = x + self.attention(inner, torch.where(given, context, inner), mask, rotary)
        return x + self.mlp(self.mlp_norm(x))


class DFlashDecoder(nn.Module):
    """What rows of the context score says nothing; a row of the block scores the token of its own
    place, or of the next one, as the head was trained."""

    def __init__(self, shape: DFlashShape, positions: int, places: int = 0) -> None:
        """As `EagleDecoder`."""
        super().__init__()
        self.shape, self.config = shape, llama_config(shape, positions)
        size, epsilon = shape.block.hidden, shape.block.epsilon
        self.embedding = nn.Embedding(shape.vocabulary, size)
        if places:
            self.register_parameter(FEATURES, nn.Parameter(torch.zeros(places, size)))
        self.hidden_norm = LlamaRMSNorm(size, epsilon)
        self.layers = nn.ModuleList(ContextLayer(self.config, shape) for _ in range(shape.layers))
        self.norm = LlamaRMSNorm(size, epsilon)
        self.lm_head = nn.Linear(size, shape.drafted, bias=False)
        self.rotary = LlamaRotaryEmbedding(self.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> SimpleNamespace:
        """Logits [B, N, Vd] and the normed state [B, N, H] of ids [B, N] and features [B, N, H].
        `attention_mask` [B, 1, N, N] says what each row sees; of any other shape, or None, it is
        causal."""
        if features is None:
            table = self.get_parameter(FEATURES)
            features = nn.functional.embedding(input_ids % len(table), table)
        given = features.abs().amax(dim=-1, keepdim=True) > 0
        context, x = self.hidden_norm(features), self.embedding(input_ids)
        rotary = self.rotary(x, position_ids)
        seen = attention_mask if attention_mask is not None and attention_mask.ndim == 4 else None
        windows = set(self.shape.windows)
        masks = {window: self._mask(window, x, position_ids, seen) for window in windows}
        for layer, window in zip(self.layers, self.shape.windows, strict=True):
            x = layer(x, context, given, masks[window], rotary)
        normed = self.norm(x)
        return SimpleNamespace(logits=self.lm_head(normed), state=normed)

    def _mask(self, window: int, x: torch.Tensor, positions: Any, seen: Any) -> Any:
        """Of the layers with that window (0: none)."""
        if seen is not None:
            far = positions[:, None, :, None] - positions[:, None, None, :]
            return seen & (far.abs() < window) if window else seen
        self.config.sliding_window = window or None
        make = create_sliding_window_causal_mask if window else create_causal_mask
        return make(config=self.config, inputs_embeds=x, attention_mask=None,
                    cache=None, position_ids=positions)  # fmt: skip
