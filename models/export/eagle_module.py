"""Draft heads that are decoders over tokens and the features of the positions before them, as torch
modules: EAGLE's, and layers of multi-token prediction.

One module is what is exported, what training changes, and what the proof asks. Its rotary positions
are transformers' own, of the sizes that the head's files state.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRotaryEmbedding

from graftline.models.export.draft_attention import DraftAttention, LatentAttention, rms_norm
from graftline.models.export.draft_experts import Mixture
from graftline.models.export.host_model import ATTENTION
from graftline.models.heads.block import Block, Rope
from graftline.models.heads.experts import Experts
from graftline.models.heads.latent import Latent
from graftline.ports import FEATURES

MASK_FEATURE = "mask_feature"
"""The parameter [H] that is the feature of a mask."""


@dataclass(frozen=True)
class EagleShape:
    """What tells such heads apart. `fused`: the first layer's input is fc of embedding and feature
    (EAGLE-1/2, MTP), each normed before it where `entry_normed`, and `first_normed` says whether
    its attention has a norm before it; otherwise its attention reads both, each normed (EAGLE-3),
    and `residual_normed` says whether its residual is. `crossed`: its queries are of the embedding,
    its keys and values of the feature, both behind that norm, and the embedding is its residual
    (Hydra's cross-attn). `normed`: a norm stands before lm_head, and with `norm_output` what it
    gives is the next feature too. `windows`: how many positions each layer attends to (0: all;
    none: all layers do). `latent`: attention is of that kind; `experts`: so are the MLPs.
    `output_bias`: the projection behind attention has a bias. `masked`: a row whose feature is all
    zeros is a mask's, and has the head's own feature for those (P-EAGLE). `sampled`: behind fc the
    embedding gates an MLP over the feature, and the last MLP makes the next feature by a matrix of
    its own (FSPAD)."""

    block: Block
    layers: int
    vocabulary: int
    drafted: int
    fused: bool
    fc_bias: bool = False
    residual_normed: bool = False
    crossed: bool = False
    normed: bool = True
    norm_output: bool = False
    entry_normed: bool = False
    first_normed: bool = False
    output_bias: bool = False
    masked: bool = False
    sampled: bool = False
    windows: tuple[int, ...] = ()
    latent: Latent | None = None
    experts: Experts | None = None

    @property
    def rope(self) -> Rope:
        """The rotary positions of all layers."""
        return self.block.rope if self.latent is None else self.latent.rope

    @property
    def caches(self) -> tuple[int, int]:
        """KV heads, and numbers of a key and of a value, of each layer's cache."""
        if self.latent is None:
            return self.block.kv_heads, self.block.head_size
        key = self.latent.plain + self.latent.rope.size
        return self.latent.heads, max(key, self.latent.value)


class FeatureSampling(nn.Module):
    """x + down(silu(gate(embedding)) * up(norm(x))): of a feature, what goes with the token that
    was chosen (FSPAD, arXiv 2408.15562)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm = rms_norm(block.hidden, block)
        self.gate = nn.Linear(block.hidden, block.mlp, bias=False)
        self.up = nn.Linear(block.hidden, block.mlp, bias=False)
        self.down = nn.Linear(block.mlp, block.hidden, bias=False)

    def forward(self, x: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Both [B, N, H] -> [B, N, H]."""
        return x + self.down(silu(self.gate(embedded)) * self.up(self.norm(x)))


class TwoEnds(LlamaMLP):
    """A gated MLP with two last matrices: of what is scored, and of the next feature."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.feature_down = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    def both(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, N, H] -> twice [B, N, H]."""
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner), self.feature_down(inner)


class EagleBlock(nn.Module):
    """A decoder layer. The first of EAGLE-1/2 has no norm before its attention; that of EAGLE-3
    attends over [norm(embedding); norm(feature)], twice as wide; that of Hydra's cross-attn asks by
    norm(embedding) over norm(feature)."""

    def __init__(self, config: LlamaConfig, layer: int, shape: EagleShape) -> None:
        super().__init__()
        first, block = layer == 0, shape.block
        self.crossed, self.residual_normed = first and shape.crossed, shape.residual_normed
        self.wide = first and not shape.fused and not shape.crossed
        self.attention_norm: nn.Module | None = None
        if self.wide:
            self.embedding_norm = rms_norm(block.hidden, block)
            self.hidden_norm = rms_norm(block.hidden, block)
        elif not first or shape.first_normed:
            self.attention_norm = rms_norm(block.hidden, block)
        if shape.latent is None:
            width = block.hidden * (2 if self.wide else 1)
            self.attention: Any = DraftAttention(config, layer, block, width, shape.output_bias)
        else:
            self.attention = LatentAttention(config, shape.latent, block.hidden)
        self.mlp_norm = rms_norm(block.hidden, block)
        self.mlp = _mlp(config, shape, layer)

    def forward(
        self, x: torch.Tensor, embedded: torch.Tensor, mask: Any, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, N, H] -> [B, N, H], what leaves the layer; and the next feature, which mostly is
        that too."""
        given = x if self.attention_norm is None else self.attention_norm(x)
        if self.crossed:
            assert self.attention_norm is not None, "one norm is for both"
            asked = self.attention_norm(embedded)
            return self.ends(embedded + self.attention(asked, rotary, mask, given))
        if self.wide:
            normed = self.hidden_norm(x)
            given = torch.cat([self.embedding_norm(embedded), normed], dim=-1)
            x = normed if self.residual_normed else x
        return self.ends(x + self.attention(given, rotary, mask))

    def ends(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same behind attention."""
        normed = self.mlp_norm(x)
        if isinstance(self.mlp, TwoEnds):
            scored, feature = self.mlp.both(normed)
            return x + scored, x + feature
        x = x + self.mlp(normed)
        return x, x


def _mlp(config: LlamaConfig, shape: EagleShape, layer: int) -> nn.Module:
    if shape.experts is not None:
        return Mixture(config, shape.experts)
    last = layer == shape.layers - 1
    return TwoEnds(config) if shape.sampled and last else LlamaMLP(config)


class EagleDecoder(nn.Module):
    """Row i has the token at i + 1 and the feature of position i, and scores the token at i + 2."""

    def __init__(self, shape: EagleShape, positions: int, places: int = 0) -> None:
        """`positions`: most of a text. `places`: rows of a table of features, which is looked up by
        token ids where no features are given (`graftline.ports.FEATURES`)."""
        super().__init__()
        self.shape, self.config = shape, llama_config(shape, positions)
        size, block = self.config.hidden_size, shape.block
        self.embedding = nn.Embedding(shape.vocabulary, size)
        if places:
            self.register_parameter(FEATURES, nn.Parameter(torch.zeros(places, size)))
        if shape.entry_normed:
            self.embedding_norm = rms_norm(size, block)
            self.hidden_norm = rms_norm(size, block)
        if shape.masked:
            self.register_parameter(MASK_FEATURE, nn.Parameter(torch.zeros(size)))
        if shape.fused:
            self.fc = nn.Linear(2 * size, size, bias=shape.fc_bias)
        if shape.sampled:
            self.sampling = FeatureSampling(block)
        self.layers = nn.ModuleList(
            [EagleBlock(self.config, i, shape) for i in range(shape.layers)]
        )
        if shape.normed:
            self.norm = rms_norm(size, block)
        self.lm_head = nn.Linear(size, shape.drafted, bias=False)
        self.rotary = LlamaRotaryEmbedding(_rotary_config(shape, positions))

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
        given = (embedded, features)
        if self.shape.entry_normed:
            given = (self.embedding_norm(embedded), self.hidden_norm(features))
        both = torch.cat(given, dim=-1)  # all that the layers read, in one value
        embedded, x = both.split(embedded.shape[-1], dim=-1)
        x = self.entered(both) if self.shape.fused else x
        masks = self._masks(x, position_ids)
        rotary = self.rotary(x, position_ids)
        feature = x
        for layer, window in zip(self.layers, self._windows, strict=True):
            x, feature = layer(x, embedded, masks[window], rotary)
        normed = self.norm(x) if self.shape.normed else x
        state = normed if self.shape.norm_output else feature
        return SimpleNamespace(logits=self.lm_head(normed), state=state)

    def entered(self, both: torch.Tensor) -> torch.Tensor:
        """What enters the layers of embeddings and features [B, N, 2 H], where fc joins them."""
        x = self.fc(both)
        return self.sampling(x, both[..., : x.shape[-1]]) if self.shape.sampled else x

    @property
    def _windows(self) -> tuple[int, ...]:
        return self.shape.windows or (0,) * self.shape.layers

    def _masks(self, x: torch.Tensor, positions: torch.Tensor | None) -> dict[int, Any]:
        """The masks of layers, by their windows."""
        masks: dict[int, Any] = {}
        for window in set(self._windows):
            kind = create_sliding_window_causal_mask if window else create_causal_mask
            config = copy(self.config)
            config.sliding_window = window or None
            masks[window] = kind(
                config=config, inputs_embeds=x, attention_mask=None, cache=None,
                position_ids=positions,
            )  # fmt: skip
        return masks


class Layers(Protocol):
    """So many layers of one size, over a vocabulary."""

    @property
    def block(self) -> Block: ...
    @property
    def rope(self) -> Rope: ...
    @property
    def layers(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


def llama_config(shape: Layers, positions: int) -> LlamaConfig:
    """The sizes of a head's layers as transformers names them."""
    block, rope = shape.block, shape.rope
    parameters = {"rope_theta": rope.theta, "rope_type": rope.kind, **rope.numbers}
    options: dict[str, Any] = {"attn_implementation": ATTENTION}
    config = LlamaConfig(
        hidden_size=block.hidden, intermediate_size=block.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=1, head_dim=block.head_size, vocab_size=shape.vocabulary,
        rms_norm_eps=block.epsilon, max_position_embeddings=positions, rope_parameters=parameters,
        **options,
    )  # fmt: skip
    # whose own check would have the hidden size a multiple of their number
    config.num_attention_heads, config.num_key_value_heads = block.heads, block.kv_heads
    return config


def _rotary_config(shape: EagleShape, positions: int) -> LlamaConfig:
    """The same, with heads of those numbers that are rotated."""
    config = llama_config(shape, positions)
    config.head_dim = shape.rope.size
    return config
