"""LoRA-Drop's corrections in training (arXiv 2601.02569): low-rank matrices stand in for blocks of
the frozen host at most tokens, and learn to make it say what it says with all of them.

A text is read in one pass, as the recipe decodes it. Of every cycle behind the prompt one token is
computed by all blocks; at the others a block that is passed by gives what it gave at that token,
plus the correction of the stream that enters it. Its keys and values there are seen by none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads.lora_drop import CYCLE, DOWN, UP
from graftline.models.training.chains import NEAR, NEAR_BF16, plain_decoder
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.host_scored import Stepwise
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published
from graftline.route import blocks_of

RANK, SCALE = 8, 2.0
"""As published: the rank, and what corrections are multiplied by (alpha 16 over a rank of 8)."""
CHECKED = 12
"""Tokens on which it is seen whether the host's blocks are run as they are meant."""


def passed_by(layers: str, count: int) -> tuple[int, ...]:
    """The blocks of a host of `count` that corrections stand in for: those of `layers`, as --skip
    names them; "": every other one from the third on, as published. Raises GraftlineError."""
    chosen = blocks_of(layers, count) if layers else frozenset(range(2, count, 2))
    if not chosen or len(chosen) == count:
        many = "every block" if chosen else "no block"
        raise GraftlineError(
            f"--layers {layers or 'by default'}: passes {many} of {count} by; name some of them"
        )
    return tuple(sorted(chosen))


class Corrections(nn.Module):
    """For each block A [r, H], as a linear layer begins, and B [H, r] of zeros."""

    def __init__(self, layers: Sequence[int], hidden: int, rank: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.down = nn.ParameterList([nn.Parameter(torch.empty(rank, hidden)) for _ in layers])
        self.up = nn.ParameterList([nn.Parameter(torch.zeros(hidden, rank)) for _ in layers])
        for matrix in self.down:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """The correction of the `place`-th block of a stream [B, L, H]."""
        return linear(linear(x, self.down[place]), self.up[place]) * SCALE


class Skipping:
    """Makes blocks of a host be passed by while it reads a pack; without one they are run."""

    def __init__(self, host: FrozenHost, module: Corrections) -> None:
        self.module, self.folder = module, host.folder
        self.refreshed: torch.Tensor | None = None
        """[B, L]: of each position the last that all blocks compute, itself or one before it."""
        self.seen: torch.Tensor | None = None
        """[B, 1, L, L], added to scores: what positions see of keys that are there."""
        self.runs = 0
        for place, layer in enumerate(module.layers):
            block = host.blocks[layer]
            block.register_forward_pre_hook(self._masked, with_kwargs=True)
            block.register_forward_hook(self._hook(place), with_kwargs=True)

    def _masked(self, block: Any, given: Any, named: dict[str, Any]) -> Any:
        if self.refreshed is None:
            return None
        if "attention_mask" not in named:
            raise CheckpointError(
                f"{self.folder}: the model's blocks take no attention_mask; corrections cannot be "
                "trained beside it"
            )
        return given, {**named, "attention_mask": self.seen}

    def _hook(self, place: int) -> Any:
        def hook(block: Any, given: Any, named: dict[str, Any], out: Any) -> Any:
            if self.refreshed is None:
                return None
            self.runs += 1
            whole = out[0] if isinstance(out, tuple) else out
            x = given[0] if given else named["hidden_states"]
            index = self.refreshed[..., None].expand_as(whole)
            state = whole.gather(1, index) + self.module(x, place)
            own = self.refreshed == torch.arange(whole.shape[1])
            mixed = torch.where(own[..., None], whole, state)
            return (mixed, *out[1:]) if isinstance(out, tuple) else mixed

        return hook


class LoraDrop(Stepwise):
    """Corrections for a frozen host, which foretell each next token as its own steps do."""

    depths = 1
    places: int | None = None

    def __init__(self, host: FrozenHost, layers: str, rank: int) -> None:
        """Raises GraftlineError for layers that it has not, and CheckpointError for a host whose
        blocks cannot be passed by."""
        chosen = passed_by(layers, host.layers)
        if rank > host.hidden:
            raise GraftlineError(f"--rank {rank}: the model's hidden states have {host.hidden}")
        self.lm_head, self.bias, self.source = host.lm_head, host.bias, host.source
        self.embedding, self.vocabulary = host.embedding, host.vocabulary
        self.drafted, self.count = torch.arange(host.vocabulary), host.layers
        self.decoder = plain_decoder(host, "corrections")
        self.module = Corrections(chosen, host.hidden, rank)
        self.skipping = Skipping(host, self.module)
        _check(host, self)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """What lm_head reads at each position."""
        places = torch.arange(pack.ids.shape[1])[None]
        behind = (places - pack.starts[:, None]).clamp_min(0)
        refreshed = places - behind % CYCLE
        return [self.read(pack.ids, refreshed)]

    def read(self, ids: torch.Tensor, refreshed: torch.Tensor) -> torch.Tensor:
        """States [B, L, H] of texts, whose blocks are run at the positions `refreshed` [B, L]."""
        size = ids.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool).tril().expand(len(ids), 1, size, size)
        there = (refreshed == torch.arange(size))[:, None, None]
        own = torch.eye(size, dtype=torch.bool)  # a row that nobody reads still sees itself
        self.skipping.refreshed = refreshed
        self.skipping.seen = _added(causal & (there | own))
        try:
            out = self.decoder(
                inputs_embeds=self.embedding[ids], use_cache=False, attention_mask=_added(causal),
                position_ids=torch.arange(size).expand(len(ids), size),
            )  # fmt: skip
        finally:
            self.skipping.refreshed = self.skipping.seen = None
        return out.last_hidden_state.float()

    def published(self) -> Published:
        """model.safetensors and config.json, with the names of the published code."""
        rank, hidden = self.module.down[0].shape
        config: dict[str, Any] = {
            "base_model_name_or_path": self.source, "drop_cycle": CYCLE, "hidden_size": hidden,
            "lora_alpha": SCALE * rank, "lora_rank": rank, "num_hidden_layers": self.count,
        }  # fmt: skip
        tensors: dict[str, torch.Tensor] = {}
        for place, layer in enumerate(self.module.layers):
            tensors[DOWN.format(layer)] = self.module.down[place]
            tensors[UP.format(layer)] = self.module.up[place]
        layers = len(self.module.layers)
        notes = {"stands in for": f"{layers} of {self.count} blocks, 3 of 4 tokens"}
        return Published("LoRA-Drop", "model.safetensors", config, tensors, notes)


def _added(seen: torch.Tensor) -> torch.Tensor:
    """A mask as what is added to scores."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape).masked_fill_(~seen, lowest)


@torch.no_grad()
def _check(host: FrozenHost, student: LoraDrop) -> None:
    """Raise CheckpointError unless the host reads a text as it does alone where all its positions
    are computed by all blocks, and its blocks are passed by where they are not."""
    ids = (torch.arange(CHECKED) * 7 + 1) % host.vocabulary
    wanted = host.read(ids.tolist())[0]
    every = torch.arange(CHECKED)[None]
    got = student.read(ids[None], every)[0]
    off = float((got - wanted).abs().max() / wanted.abs().max())
    if not off <= (NEAR_BF16 if host.bf16 else NEAR) or not student.skipping.runs:
        raise CheckpointError(
            f"{host.folder}: the model's blocks are not run as they are meant (off by {off:.2g}); "
            "corrections cannot be trained beside it"
        )
