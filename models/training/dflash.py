"""DFlash heads in training (arXiv 2602.06036): layers over a block of masks, which see one another
and the host's states before the block.

Behind each chosen position of a text stands a block of its own: the token there, and masks. Every
layer's keys and values are those of the context, hidden_norm(fc(the outputs of three of the host's
layers)) up to that token, and of the block itself. lm_head is the host's own rows of the tokens
that are drafted; it and the embedding are not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graftline.errors import CheckpointError
from graftline.models.export.dflash_module import (
    ContextAttention,
    ContextLayer,
    DFlashDecoder,
    DFlashShape,
)
from graftline.models.heads.block import ORDINARY
from graftline.models.hf import facts_of
from graftline.models.mask_token import mask_token
from graftline.models.training.eagle import llama_block, llama_keys
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack
from graftline.models.training.rows import Row
from graftline.models.training.speculators import DraftLmHead, Verifier
from graftline.models.training.student import Published
from graftline.models.training.vocabulary import DraftVocabulary

BLOCK, LAYERS = 4, 2
"""Rows of a block unless it is said, and layers: for hosts whose steps accept few drafts."""
PLACES = 64
"""Blocks of a text at which a step of training drafts, and that one pass reads."""
LEAST = 1e-3
"""A channel's spread below which it is not scaled up further."""
Rotary = tuple[torch.Tensor, torch.Tensor]


class BlockModule(nn.Module):
    """What the host makes of its outputs for the head, and the head."""

    def __init__(self, shape: DFlashShape, taps: int, positions: int) -> None:
        super().__init__()
        hidden = shape.block.hidden
        self.fc = nn.Linear(taps * hidden, hidden, bias=False)
        self.decoder = DFlashDecoder(shape, positions)

    def context(self, taps: torch.Tensor) -> torch.Tensor:
        """taps [..., T x H] -> what keys and values are of [..., H]."""
        return self.decoder.hidden_norm(self.fc(taps))

    def forward(
        self, context: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """The normed states [P, K, H] of blocks of K `tokens` [P, K] that begin at `places` [P] of
        a text, whose positions before have the `context` [N, H]."""
        count, blocks = tokens.shape
        x = self.decoder.embedding(tokens).flatten(0, 1)[None]
        positions = (places[:, None] + torch.arange(blocks)).reshape(1, -1)
        past = torch.arange(len(context))[None]
        turns = self.decoder.rotary(x, positions), self.decoder.rotary(x, past)
        seen = _seen(len(context), places, blocks)
        for layer in self.decoder.layers:
            assert isinstance(layer, ContextLayer)
            inner = layer.attention_norm(x)
            x = x + _attended(layer.attention, inner, context[None], seen, turns)
            x = x + layer.mlp(layer.mlp_norm(x))
        return self.decoder.norm(x)[0].unflatten(0, (count, blocks))


class DFlash:
    """A DFlash head over a frozen host, whose embedding it shares."""

    places = PLACES
    kind: ClassVar[str] = "dflash"
    anchored: ClassVar[bool] = False
    """Whether the row of the token before the draft drafts, too."""

    def __init__(
        self,
        host: FrozenHost,
        words: DraftVocabulary,
        learned: Sequence[Row],
        block: int = BLOCK,
    ) -> None:
        """`learned`: texts by which the head begins. Raises CheckpointError."""
        self.lm_head, self.verifier = DraftLmHead(host, words), Verifier.of(host)
        self.block, self.depths = block, block - (0 if self.anchored else 1)
        self.vocabulary, self.drafted, self.layers = host.vocabulary, words.ids, host.tapped
        self.config, self.positions = host.config, max(facts_of(host.config, 0, "").positions, 1)
        self.mask = block_mask(host, learned)
        shape = block_shape(host, len(words.ids))
        self.module = BlockModule(shape, len(host.tapped), self.positions)
        decoder = self.module.decoder
        decoder.embedding.weight = nn.Parameter(host.embedding, requires_grad=False)
        decoder.lm_head.weight = self.lm_head.weight
        self._begin(host, learned[0].ids.tolist())

    @torch.no_grad()
    def _begin(self, host: FrozenHost, text: Sequence[int]) -> None:
        """Let the numbers of all tapped layers count alike, and scores be spread as the host's."""
        read, taps = host.read(text)
        self.module.fc.weight /= taps.square().mean(0).sqrt().clamp_min(LEAST)
        self.module.decoder.norm.weight.fill_(float(read.square().mean().sqrt()))

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """The states of each row that drafts, of the block behind every position that is asked
        for, and zeros elsewhere."""
        counted = pack.counted(2)
        context = self.module.context(pack.taps)
        made = torch.zeros(self.depths, *counted.shape, context.shape[-1])
        for text in range(len(counted)):
            for places in counted[text].nonzero()[:, 0].split(PLACES):
                known = context[text, : int(places.max()) + 1]
                tokens = torch.full((len(places), self.block), self.mask)
                tokens[:, 0] = pack.ids[text, places + 1]
                states = self.module(known, tokens, places + 1)[:, -self.depths :]
                made[:, text, places] = states.transpose(0, 1).float()
        return list(made)

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """By the head's rows of the host's lm_head."""
        return self.lm_head.scores(states, ids)

    def place(self, depth: int) -> int:
        """What a block says is noted where the host's states end."""
        return 0

    def weight(self, depth: int) -> float:
        """0.8 to the depth, near DFlash's exp(-depth / 4)."""
        return 0.8**depth

    def published(self) -> Published:
        """model.safetensors and config.json in the speculators format (vLLM), which counts layers
        as they are entered. A head of the whole vocabulary has neither d2t nor an lm_head."""
        tensors = {**self._tensors(), **self.lm_head.tensors()}
        notes = {
            "draft vocabulary": str(self.lm_head.words),
            "block": f"{self.block} rows, of which {self.depths} draft; mask token {self.mask}",
        }
        config = self.verifier.config(
            self.kind, self._architecture, self.depths, self._layer(),
            self.lm_head.keys() | self._own(),
        )
        return Published(self._name, "model.safetensors", config, tensors, notes)

    _name, _architecture = "DFlash", "DFlashSpeculator"

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What is learned, under the published names."""
        decoder = self.module.decoder
        tensors: dict[str, torch.Tensor] = {
            "fc.weight": self.module.fc.weight, "norm.weight": decoder.norm.weight,
            "hidden_norm.weight": decoder.hidden_norm.weight,
        }  # fmt: skip
        for name, value in decoder.layers.named_parameters():
            number, part, rest = name.split(".", 2)
            tensors[f"layers.{number}.{PARTS.get(part, part)}.{QK.get(rest, rest)}"] = value
        return tensors

    def _layer(self) -> dict[str, Any]:
        """A Qwen3 config of the head's layers."""
        shape = self.module.decoder.shape
        keys = llama_keys(shape.block, self.config, self.positions)
        return {
            **keys, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
            "num_hidden_layers": shape.layers, "attention_bias": False,
            "vocab_size": self.vocabulary,
        }  # fmt: skip

    def _own(self) -> dict[str, Any]:
        """Keys of the kind."""
        return {
            "block_size": self.block, "draft_vocab_size": len(self.drafted),
            "mask_token_id": self.mask, "sample_from_anchor": self.anchored,
            "target_hidden_size": self.module.decoder.shape.block.hidden,
            "aux_hidden_state_layer_ids": [layer + 1 for layer in self.layers],
        }  # fmt: skip


PARTS = {ours: theirs for theirs, ours in ORDINARY.items()} | {"attention": "self_attn"}
QK = {"query_norm.weight": "q_norm.weight", "key_norm.weight": "k_norm.weight"}
"""What the parts of a layer are called by us, and in published files."""


def block_shape(host: FrozenHost, drafted: int) -> DFlashShape:
    """Layers of the host's sizes, with norms of queries and keys, as Qwen3's."""
    block = replace(llama_block(host), query_norm=True)
    return DFlashShape(block, LAYERS, (0,) * LAYERS, host.vocabulary, drafted)


def block_mask(host: FrozenHost, learned: Sequence[Row]) -> int:
    """The token that stands where one is drafted: the checkpoint's own mask token, or else, of
    those that no text holds, the one whose embedding is nearest the usual length: as a stand-in it
    is read at every draft, and an unused row may be zeros. Raises CheckpointError where texts hold
    all tokens."""
    named = mask_token(Path(host.folder))
    if named is not None and 0 <= named < host.vocabulary:
        return named
    held = torch.zeros(host.vocabulary, dtype=torch.bool)
    for row in learned:
        held[torch.as_tensor(row.ids)] = True
    if held.all():
        raise CheckpointError(
            f"{host.folder}: names no mask token, and texts hold all {host.vocabulary} tokens, so "
            "that none is free to stand for one; name mask_token in tokenizer_config.json"
        )
    lengths = host.embedding.norm(dim=-1)
    return int((lengths - lengths.median()).abs().masked_fill(held, torch.inf).argmin())


def _attended(
    attention: ContextAttention,
    inner: torch.Tensor,
    context: torch.Tensor,
    seen: torch.Tensor,
    turns: tuple[Rotary, Rotary],
) -> torch.Tensor:
    """Attention of the blocks' rows [1, R, H] to the context [1, N, H] and to one another; `turns`
    are the rotary positions of both."""
    query, key, value = (_heads(part(inner), attention.size) for part in _projections(attention))
    past_key, past_value = (
        _heads(part(context), attention.size) for part in _projections(attention)[1:]
    )
    if attention.normed:
        query, key = attention.query_norm(query), attention.key_norm(key)
        past_key = attention.key_norm(past_key)
    query, key = apply_rotary_pos_emb(query, key, *turns[0])
    past_key = apply_rotary_pos_emb(past_key, past_key, *turns[1])[1]
    mixed = scaled_dot_product_attention(
        query, torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2),
        attn_mask=seen, scale=attention.size**-0.5, enable_gqa=True,
    )  # fmt: skip
    return attention.o_proj(mixed.transpose(1, 2).flatten(2))


def _projections(attention: ContextAttention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _heads(x: torch.Tensor, size: int) -> torch.Tensor:
    """[1, R, heads x D] -> [1, heads, R, D]."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def _seen(past: int, places: torch.Tensor, rows: int) -> torch.Tensor:
    """[P x K, N + P x K]: a block sees the context before its place, and itself whole."""
    before = torch.arange(past)[None] < places[:, None]
    own = torch.eye(len(places), dtype=torch.bool).repeat_interleave(rows, 1)
    return torch.cat([before, own], dim=1).repeat_interleave(rows, 0)
