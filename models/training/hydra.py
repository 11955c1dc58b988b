"""Hydra heads in training (arXiv 2402.05109), the grounded `mlp` form: head i reads the state and
the embeddings of the next token and of the i drafted behind it.

residual(x) + SiLU(linear(x)), scored by a copy of the host's lm_head, which is not learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import embedding, silu

from graftline.models.training.frozen import FrozenHost
from graftline.models.training.host_scored import Parallel
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published


class HydraModule(nn.Module):
    """`heads` pairs of layers over `hidden` numbers of the state and of each token, which leave the
    state as it is at first."""

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        widths = [hidden * (head + 2) for head in range(heads)]
        self.linear = nn.ModuleList([nn.Linear(width, hidden) for width in widths])
        self.residual = nn.ModuleList([nn.Linear(width, hidden) for width in widths])
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            for layer in self.residual:
                assert isinstance(layer, nn.Linear)
                layer.weight[:, :hidden] = torch.eye(hidden)


class Hydra(Parallel):
    """Grounded Hydra heads over a frozen host, whose embedding they read."""

    places = None

    def __init__(self, host: FrozenHost, heads: int) -> None:
        self.lm_head, self.bias, self.embedding = host.lm_head, host.bias, host.embedding
        self.depths, self.vocabulary, self.source = heads, host.vocabulary, host.source
        self.drafted = torch.arange(host.vocabulary)
        self.module = HydraModule(heads, host.hidden)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """All heads read the same state, and the text as it went on."""
        states: list[torch.Tensor] = []
        x = pack.taps
        pairs = zip(self.module.linear, self.module.residual, strict=True)
        for head, (layer, residual) in enumerate(pairs):
            token = embedding(pack.shifted(pack.ids, head + 1), self.embedding)
            x = torch.cat([x, token], dim=-1)
            states.append(residual(x) + silu(layer(x)))
        return states

    def published(self) -> Published:
        """hydra_lm_head.safetensors: the form has an lm_head with a bias for each head."""
        tensors: dict[str, torch.Tensor] = {}
        bias = torch.zeros(self.vocabulary) if self.bias is None else self.bias
        for head in range(self.depths):
            for name, layers in (
                ("linear", self.module.linear), ("res_connection", self.module.residual),
            ):  # fmt: skip
                for key, value in layers[head].named_parameters():
                    tensors[f"hydra_mlp.{head}.0.{name}.{key}"] = value
            tensors[f"hydra_lm_head.{head}.weight"] = self.lm_head
            tensors[f"hydra_lm_head.{head}.bias"] = bias
        config = {
            "hydra_num_heads": self.depths, "hydra_num_layers": 1, "hydra_head_arch": "mlp",
            "grounded_heads": True, "hidden_state_offset": 0,
            "base_model_name_or_path": self.source,
        }  # fmt: skip
        return Published("Hydra", "hydra_lm_head.safetensors", config, tensors)
