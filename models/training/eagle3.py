"""EAGLE-3 heads in training (arXiv 2503.01840), of version 3.1: one decoder layer over the outputs
of three of the host's layers and the next token, which is also shown its own states.

x = fc of the three, each normed first. The layer's attention reads [norm(embedding); norm(x)], its
residual is x; the norm behind it gives both what is scored and what is fed back. The lm_head is the
host's own rows of the tokens that are drafted, and is not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from graftline.errors import CheckpointError
from graftline.models.export.eagle_module import EagleDecoder, EagleShape
from graftline.models.heads.block import Block
from graftline.models.heads.taps import EAGLE3, IDS
from graftline.models.hf import facts_of
from graftline.models.training.eagle import (
    DECAY,
    STEPS,
    llama_block,
    llama_keys,
    published_layer,
    roll_out,
)
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.packs import Pack
from graftline.models.training.speculators import DraftLmHead, Verifier
from graftline.models.training.student import Published
from graftline.models.training.vocabulary import DraftVocabulary

LEAST = 1e-3
"""A channel's spread below which it is not scaled up further."""


def eagle3_layers(layers: int) -> tuple[int, ...]:
    """The layers whose outputs are read, in a host of so many. Raises CheckpointError where they
    are not three."""
    found = tuple(tap.index(layers) for tap in EAGLE3)
    if list(found) != sorted(set(found)):
        raise CheckpointError(
            f"such heads read the outputs of the layers 1, n/2-1 and n-4, which are not three in a "
            f"host of n = {layers}; train eagle, which reads what lm_head does"
        )
    return found


class Eagle3Module(nn.Module):
    """What the host makes of its outputs for the head, and the head."""

    def __init__(self, shape: EagleShape, taps: int, positions: int) -> None:
        super().__init__()
        hidden, epsilon = shape.block.hidden, shape.block.epsilon
        self.fc_norm = nn.ModuleList([LlamaRMSNorm(hidden, epsilon) for _ in range(taps)])
        self.fc = nn.Linear(taps * hidden, hidden, bias=False)
        self.decoder = EagleDecoder(shape, positions)

    def entry(self, taps: torch.Tensor) -> torch.Tensor:
        """taps [B, L, T x H] -> x [B, L, H]."""
        parts = taps.chunk(len(self.fc_norm), dim=-1)
        pairs = zip(self.fc_norm, parts, strict=True)
        return self.fc(torch.cat([norm(part) for norm, part in pairs], dim=-1))


class Eagle3:
    """An EAGLE-3.1 head over a frozen host, whose embedding it shares."""

    places = None

    def __init__(
        self, host: FrozenHost, words: DraftVocabulary, text: Sequence[int], steps: int = STEPS
    ) -> None:
        """`text`: ids by which the head begins near the host's states. Raises CheckpointError."""
        self.lm_head, self.verifier = DraftLmHead(host, words), Verifier.of(host)
        self.depths, self.vocabulary = steps, host.vocabulary
        self.drafted, self.layers, self.config = words.ids, host.tapped, host.config
        self.positions = max(facts_of(host.config, 0, "").positions, 1)
        shape = eagle3_shape(llama_block(host), host.vocabulary, len(words.ids))
        self.module = Eagle3Module(shape, len(host.tapped), self.positions)
        decoder = self.module.decoder
        decoder.embedding.weight = nn.Parameter(host.embedding, requires_grad=False)
        decoder.lm_head.weight = self.lm_head.weight
        self._begin(host, text)

    @torch.no_grad()
    def _begin(self, host: FrozenHost, text: Sequence[int]) -> None:
        """Let x begin as the last of the three, spread as what the host's lm_head reads."""
        read, taps = host.read(text)
        hidden = host.hidden
        normed = self.module.fc_norm[-1](taps[:, -hidden:])
        spread, wanted = (x.square().mean(0).sqrt() for x in (normed, read))
        self.module.fc.weight.zero_()
        self.module.fc.weight[:, -hidden:] = torch.diag(wanted / spread.clamp_min(LEAST))
        self.module.decoder.norm.weight.fill_(float(wanted.square().mean().sqrt()))

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """The states of every roll-out; that of the last position reads a token that is not there,
        and counts nowhere."""
        x = self.module.entry(pack.taps)
        return roll_out(self.module.decoder, pack.shifted(pack.ids, 1), x, self.depths)

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """By the head's rows of the host's lm_head."""
        return self.lm_head.scores(states, ids)

    def place(self, depth: int) -> int:
        """A roll-out stands one place further."""
        return depth

    def weight(self, depth: int) -> float:
        """Less for every further roll-out."""
        return DECAY**depth

    def published(self) -> Published:
        """model.safetensors and config.json in the speculators format (vLLM), which counts layers
        as they are entered. A head of the whole vocabulary has neither d2t nor an lm_head."""
        own = ("fc.weight", *(f"fc_norm.{k}.weight" for k in range(len(self.layers))))
        tensors = {name: self.module.get_parameter(name) for name in own}
        tensors["norm.weight"] = self.module.decoder.norm.weight
        tensors |= {**published_layer(self.module.decoder), **self.lm_head.tensors()}
        notes = {"draft vocabulary": str(self.lm_head.words)}
        return Published("EAGLE-3.1", "model.safetensors", self._config(), tensors, notes)

    def _config(self) -> dict[str, Any]:
        block = self.module.decoder.shape.block
        layer = {
            "architectures": ["LlamaForCausalLM"], "vocab_size": self.vocabulary,
            **llama_keys(block, self.config, self.positions),
        }  # fmt: skip
        own = self.lm_head.keys() | {
            "draft_vocab_size": len(self.drafted), "fc_norm": True, "norm_output": True,
            "norm_before_fc": False, "norm_before_residual": False,
            "target_hidden_size": block.hidden, IDS: [layer + 1 for layer in self.layers],
        }  # fmt: skip
        return self.verifier.config("eagle3", "Eagle3Speculator", self.depths, layer, own)


def eagle3_shape(block: Block, vocabulary: int, drafted: int) -> EagleShape:
    """Version 3.1: what is fed back is behind the norm."""
    return EagleShape(block, 1, vocabulary, drafted, fused=False, norm_output=True)
