"""Medusa heads in training (arXiv 2401.10774): h + SiLU(linear(h)), scored by the host's lm_head
(V2) or by a matrix of each head's own (V1), which begins as the host's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import silu

from graftline.models.training.frozen import FrozenHost
from graftline.models.training.host_scored import Parallel
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published, scored

FORMS = ("v2", "v1")
"""Whose matrix scores: the host's lm_head, or each head's own."""


class MedusaModule(nn.Module):
    """`heads` layers over states of `hidden` numbers, which leave them as they are at first."""

    def __init__(self, heads: int, hidden: int, own: torch.Tensor | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(heads)])
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)
        self.own = nn.ParameterList(
            [] if own is None else [nn.Parameter(own.clone()) for _ in range(heads)]
        )


class Medusa(Parallel):
    """Medusa heads over a frozen host."""

    places = None

    def __init__(self, host: FrozenHost, heads: int, form: str) -> None:
        self.lm_head, self.bias, self.form = host.lm_head, host.bias, form
        self.depths, self.vocabulary, self.source = heads, host.vocabulary, host.source
        self.drafted = torch.arange(host.vocabulary)
        own = host.lm_head if form == "v1" else None
        self.module = MedusaModule(heads, host.hidden, own)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """All heads read the same state."""
        return [pack.taps + silu(layer(pack.taps)) for layer in self.module.layers]

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """By the host's lm_head and its bias, or by the head's own matrix."""
        if self.form == "v1":
            return scored(states, self.module.own[depth], None, ids)
        return scored(states, self.lm_head, self.bias, ids)

    def published(self) -> Published:
        """medusa_lm_head.safetensors, and the keys that Medusa's own loaders read."""
        tensors: dict[str, torch.Tensor] = {}
        for head, layer in enumerate(self.module.layers):
            assert isinstance(layer, nn.Linear)
            tensors[f"{head}.0.linear.weight"] = layer.weight
            tensors[f"{head}.0.linear.bias"] = layer.bias
            if self.form == "v1":
                tensors[f"{head}.1.weight"] = self.module.own[head]
        config = {
            "medusa_num_heads": self.depths, "medusa_num_layers": 1, "version": self.form[1:],
            "base_model_name_or_path": self.source,
        }  # fmt: skip
        return Published(f"Medusa {self.form.upper()}", "medusa_lm_head.safetensors", config,
                         tensors)  # fmt: skip
