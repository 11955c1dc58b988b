"""EAGLE-1/2 heads in training (arXiv 2401.15077): one decoder layer over the last state and the
next token, which is also shown its own states, as it meets them when it drafts further.

In roll-out k the layer reads, at position t, the feature that it gave at t - 1 in roll-out k - 1,
and attends to what it read there: the host's states up to t - k, and then its own of each roll-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from graftline.models.export.eagle_module import EagleBlock, EagleDecoder, EagleShape
from graftline.models.heads.block import Block, Rope
from graftline.models.hf import facts_of
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published, scored

STEPS = 3
"""Roll-outs: drafts of a chain that are learned."""
DECAY = 0.9
"""How much less each further roll-out weighs."""
THETA = 10000.0
"""The base of rotary frequencies where the host names none, transformers' default."""
PARTS = {
    "hidden_norm": "hidden_norm", "embedding_norm": "input_layernorm", "attention": "self_attn",
    "mlp": "mlp", "mlp_norm": "post_attention_layernorm",
}  # fmt: skip
"""What the parts of a layer are called by us, and in published files."""


class Eagle:
    """An EAGLE-1 head over a frozen host, whose embedding and lm_head it shares."""

    places = None

    def __init__(self, host: FrozenHost, steps: int = STEPS) -> None:
        self.depths, self.vocabulary, self.source = steps, host.vocabulary, host.source
        self.drafted = torch.arange(host.vocabulary)
        self.bias, self.config = host.bias, host.config
        facts = facts_of(host.config, 0, "")
        self.shape, self.positions = self._shape(host), max(facts.positions, 1)
        self.module = EagleDecoder(self.shape, self.positions)
        self.module.embedding.weight = nn.Parameter(host.embedding, requires_grad=False)
        self.module.lm_head.weight = nn.Parameter(host.lm_head, requires_grad=False)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """The states of every roll-out; that of the last position reads a token that is not there,
        and counts nowhere."""
        return roll_out(self.module, pack.shifted(pack.ids, 1), pack.taps, self.depths)

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """By the host's lm_head and its bias."""
        return scored(states, self.module.lm_head.weight, self.bias, ids)

    def place(self, depth: int) -> int:
        """A roll-out stands one place further."""
        return depth

    def weight(self, depth: int) -> float:
        """Less for every further roll-out."""
        return DECAY**depth

    def published(self) -> Published:
        """model.safetensors under the names of EAGLE's own, and a Llama config of one layer."""
        tensors = {f"fc.{key}": value for key, value in self.module.fc.named_parameters()}
        tensors |= published_layer(self.module)
        return Published("EAGLE-1", "model.safetensors", self._llama(), tensors)

    def _llama(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"], "bias": True, "vocab_size": self.vocabulary,
            "torch_dtype": "float16", "base_model_name_or_path": self.source,
            **llama_keys(self.shape.block, self.config, self.positions),
        }  # fmt: skip

    def _shape(self, host: FrozenHost) -> EagleShape:
        """A Llama layer of the host's sizes, whatever the host's own layers are."""
        return EagleShape(
            llama_block(host), 1, host.vocabulary, host.vocabulary, fused=True, fc_bias=True,
            normed=False,
        )  # fmt: skip


def llama_block(host: FrozenHost) -> Block:
    """The sizes of the host's layers, and its base of rotary frequencies."""
    facts = facts_of(host.config, 0, "")
    rope: Any = getattr(host.config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta") or getattr(host.config, "rope_theta", None) or THETA
    mlp = getattr(host.config, "intermediate_size", None) or 8 * host.hidden // 3
    epsilon = getattr(host.config, "rms_norm_eps", None) or 1e-6
    size = facts.head_size - facts.head_size % 2
    return Block(
        host.hidden, facts.heads, facts.kv_heads, size, int(mlp), float(epsilon),
        Rope(float(theta), size),
    )  # fmt: skip


def llama_keys(block: Block, config: Any, positions: int) -> dict[str, Any]:
    """A Llama config of one such layer, with the beginning and end of a text from `config`."""
    ends = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id")}
    return {
        "model_type": "llama", "hidden_size": block.hidden, "intermediate_size": block.mlp,
        "num_hidden_layers": 1, "num_attention_heads": block.heads,
        "num_key_value_heads": block.kv_heads, "head_dim": block.head_size, "hidden_act": "silu",
        "rms_norm_eps": block.epsilon, "rope_theta": block.rope.theta,
        "max_position_embeddings": positions, **{k: v for k, v in ends.items() if v},
    }  # fmt: skip


def published_layer(module: EagleDecoder) -> dict[str, torch.Tensor]:
    """The tensors of a head's layer, under EAGLE's names."""
    tensors: dict[str, torch.Tensor] = {}
    for ours, theirs in PARTS.items():
        for key, value in module.layers[0].named_parameters():
            if key.startswith(f"{ours}."):
                tensors[f"layers.0.{theirs}{key.removeprefix(ours)}"] = value
    return tensors


def roll_out(
    module: EagleDecoder, ids: torch.Tensor, taps: torch.Tensor, steps: int
) -> list[torch.Tensor]:
    """The states [B, L, H] of each roll-out over ids [B, L], each behind its position's, and the
    host's taps [B, L, H]. Those of roll-out k stand from position k on."""
    block = module.layers[0]
    assert isinstance(block, EagleBlock)
    assert module.shape.norm_output or not module.shape.normed, "what is scored is fed back"
    embedded = module.embedding(ids)
    rotary = module.rotary(embedded, torch.arange(ids.shape[1])[None])
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    states, features = list[torch.Tensor](), taps
    for step in range(steps):
        x, given = _entered(module, block, embedded, features)
        query, key, value = _projected(block.attention, given, rotary)
        keys.append(key)
        values.append(value)
        attended = scaled_dot_product_attention(
            query, _spread(keys, query), _spread(values, query),
            attn_mask=_seen(ids.shape[1], step), scale=block.attention.scaling,
        )  # fmt: skip
        x = x + block.attention.o_proj(attended.transpose(1, 2).flatten(2))
        x, fed = block.ends(x)
        states.append(module.norm(x) if module.shape.normed else x)
        fed = states[-1] if module.shape.norm_output else fed
        features = torch.cat([torch.zeros_like(taps[:, :1]), fed[:, :-1]], dim=1)
    return states


def _entered(
    module: EagleDecoder, block: EagleBlock, embedded: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the layer, and what its attention reads."""
    if not block.wide:
        x = module.entered(torch.cat([embedded, features], dim=-1))
        return x, x
    normed = block.hidden_norm(features)
    given = torch.cat([block.embedding_norm(embedded), normed], dim=-1)
    return (normed if block.residual_normed else features), given


def _projected(
    attention: LlamaAttention, x: torch.Tensor, rotary: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [B, heads, L, D], rotated."""
    query, key, value = (
        part(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    return query, key, value


def _spread(parts: list[torch.Tensor], query: torch.Tensor) -> torch.Tensor:
    """The keys or values of all roll-outs [B, heads, (k + 1) L, D], a KV head for every query's."""
    joined = torch.cat(parts, dim=2)
    return joined.repeat_interleave(query.shape[1] // joined.shape[1], dim=1)


def _seen(length: int, step: int) -> torch.Tensor:
    """[L, (k + 1) L]: a row of roll-out k sees the host's rows up to k places back, and one row of
    each roll-out since."""
    row, column = torch.arange(length)[:, None], torch.arange(length)[None]
    parts = [column <= row - step]
    parts += [column == row - step + later for later in range(1, step + 1)]
    return torch.cat(parts, dim=1)
