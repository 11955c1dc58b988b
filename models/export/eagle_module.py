"""EAGLE heads as torch modules: decoders over tokens and the features of the positions before them.

One module is what is exported, what training changes, and what the proof asks. Its attention and
rotary positions are transformers' own, of the sizes that the head's files state.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from graftline.models.export.host_model import ATTENTION
from graftline.models.heads.block import Block
from graftline.ports import FEATURES

MASK_FEATURE = "mask_feature"
"""The parameter [H] that is the feature of a mask."""


@dataclass(frozen=True)
class EagleShape:
    """What tells EAGLE heads apart. `fused`: the first layer's input is fc of embedding and feature
    (EAGLE-1/2); otherwise its attention reads both, each normed (EAGLE-3), and `residual_normed`
    says whether its residual is. `normed`: a norm stands before lm_head, and with `norm_output`
    what it gives is the next feature too. `masked`: a row whose feature is all zeros is a mask's,
    and has the head's own feature for those (P-EAGLE)."""

    block: Block
    layers: int
    vocabulary: int
    drafted: int
    fused: bool
    fc_bias: bool = False
    residual_normed: bool = False
    normed: bool = True
    norm_output: bool = False
    masked: bool = False


class EagleBlock(nn.Module):
    """A decoder layer. The first of EAGLE-1/2 has no norm before its attention; that of EAGLE-3
    attends over [norm(embedding); norm(feature)], twice as wide."""

    def __init__(self, config: LlamaConfig, layer: int, shape: EagleShape) -> None:
        super().__init__()
        first, size = layer == 0, config.hidden_size
        self.wide, self.residual_normed = first and not shape.fused, shape.residual_normed
        self.attention_norm: nn.Module | None = None
        if self.wide:
            self.embedding_norm = LlamaRMSNorm(size, config.rms_norm_eps)
            self.hidden_norm = LlamaRMSNorm(size, config.rms_norm_eps)
        elif not first:
            self.attention_norm = LlamaRMSNorm(size, config.rms_norm_eps)
        self.attention = LlamaAttention(config, layer)
        if self.wide:
            for name in ("q_proj", "k_proj", "v_proj"):
                old = getattr(self.attention, name)
                new = nn.Linear(2 * size, old.out_features, bias=old.bias is not None)
                setattr(self.attention, name, new)
        self.mlp_norm = LlamaRMSNorm(size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self, x: torch.Tensor, embedded: torch.Tensor, mask: Any, rotary: Any
    ) -> torch.Tensor:
        """[B, N, H] -> [B, N, H]."""
        given = x if self.attention_norm is None else self.attention_norm(x)
        if self.wide:
            normed = self.hidden_norm(x)
            given = torch.cat([self.embedding_norm(embedded), normed], dim=-1)
            x = normed if self.residual_normed else x
        x = x + self.attention(given, rotary, mask)[0]
        return x + self.mlp(self.mlp_norm(x))


class EagleDecoder(nn.Module):
    """Row i has the token at i + 1 and the feature of position i, and scores the token at i + 2."""

    def __init__(self, shape: EagleShape, positions: int, places: int = 0) -> None:
        """`positions`: most of a text. `places`: rows of a table of features, which is looked up by
        token ids where no features are given (`graftline.ports.FEATURES`)."""
        super().__init__()
        self.shape, self.config = shape, llama_config(shape, positions)
        size = self.config.hidden_size
        self.embedding = nn.Embedding(shape.vocabulary, size)
        if places:
            self.register_parameter(FEATURES, nn.Parameter(torch.zeros(places, size)))
        if shape.masked:
            self.register_parameter(MASK_FEATURE, nn.Parameter(torch.zeros(size)))
        if shape.fused:
            self.fc = nn.Linear(2 * size, size, bias=shape.fc_bias)
        self.layers = nn.ModuleList(
            [EagleBlock(self.config, i, shape) for i in range(shape.layers)]
        )
        if shape.normed:
            self.norm = LlamaRMSNorm(size, self.config.rms_norm_eps)
        self.lm_head = nn.Linear(size, shape.drafted, bias=False)
        self.rotary = LlamaRotaryEmbedding(self.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> SimpleNamespace:
        """Logits [B, N, Vd] of ids [B, N] and features [B, N, H], and the state [B, N, H] that
        stands for the feature of the position after each row's."""
        if features is None:
            table = self.get_parameter(FEATURES)
            features = nn.functional.embedding(input_ids % len(table), table)
        if self.shape.masked:
            given = features.abs().amax(dim=-1, keepdim=True) > 0
            features = torch.where(given, features, self.get_parameter(MASK_FEATURE))
        embedded = self.embedding(input_ids)
        both = torch.cat([embedded, features], dim=-1)  # all that the layers read, in one value
        embedded, x = both.split(embedded.shape[-1], dim=-1)
        x = self.fc(both) if self.shape.fused else x
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=None,
            cache=None, position_ids=position_ids,
        )  # fmt: skip
        rotary = self.rotary(x, position_ids)
        for layer in self.layers:
            x = layer(x, embedded, mask, rotary)
        normed = self.norm(x) if self.shape.normed else x
        state = normed if self.shape.norm_output else x
        return SimpleNamespace(logits=self.lm_head(normed), state=state)


class Layers(Protocol):
    """So many layers of one size, over a vocabulary."""

    @property
    def block(self) -> Block: ...
    @property
    def layers(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


def llama_config(shape: Layers, positions: int) -> LlamaConfig:
    """The sizes of a head's layers as transformers names them."""
    block = shape.block
    rope = {"rope_theta": block.rope.theta, "rope_type": block.rope.kind, **block.rope.numbers}
    options: dict[str, Any] = {"attn_implementation": ATTENTION}
    return LlamaConfig(
        hidden_size=block.hidden, intermediate_size=block.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=block.heads, num_key_value_heads=block.kv_heads,
        head_dim=block.head_size, vocab_size=shape.vocabulary, rms_norm_eps=block.epsilon,
        max_position_embeddings=positions, rope_parameters=rope, attention_bias=block.bias,
        **options,
    )  # fmt: skip
