"""EAGLE-1/2 in PyTorch, from its description (arXiv 2401.15077)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.models.heads.reference_layers import Layer, Sizes, causal


class Eagle(nn.Module):
    """fc([embedding of token t+1; feature of t]), then the layers, the first without a norm before
    its attention. The output is the feature of t+1."""

    def __init__(
        self, sizes: Sizes, layers: int = 1, bias: bool = True, qkv_bias: bool = False,
        **attention: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.fc = nn.Linear(2 * sizes.hidden, sizes.hidden, bias=bias)
        self.layers = nn.ModuleList(
            Layer(sizes, first_norm=index > 0, bias=qkv_bias, **attention)
            for index in range(layers)
        )

    def forward(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """Both [B, N, H]: of token t+1, and of the host's final norm at t. -> [B, N, H]."""
        x = self.fc(torch.cat([embeddings, features], dim=-1))
        rows = x.shape[1]
        for layer in self.layers:
            x = layer(x, torch.arange(rows), causal(rows))
        return x
