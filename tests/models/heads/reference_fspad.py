"""FSPAD in PyTorch, from its description (arXiv 2408.15562)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tests.models.heads.reference_layers import Attention, Mlp, RmsNorm, Sizes, causal


class Sampling(nn.Module):
    """fc([embedding; feature]), and to it an MLP over its norm whose gate reads the embedding."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * sizes.hidden, sizes.hidden)
        self.mlp = Mlp(sizes.hidden, sizes.mlp)
        self.post_attention_layernorm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.on = True

    def forward(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """Both [B, N, H] -> [B, N, H]."""
        x = self.fc(torch.cat([embeddings, features], dim=-1))
        gate = silu(self.mlp.gate_proj(embeddings))
        up = self.mlp.up_proj(self.post_attention_layernorm(x))
        return x + self.mlp.down_proj(gate * up) if self.on else x


class TwoEnds(nn.Module):
    """A layer without a norm before its attention, which ends in [x; x] and what a last matrix of
    twice as many rows adds."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes.hidden, sizes.mlp)
        self.mlp.down_proj = nn.Linear(sizes.mlp, 2 * sizes.hidden, bias=False)
        self.post_attention_layernorm = RmsNorm(sizes.hidden, sizes.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, H] -> [B, N, 2 H]."""
        rows = x.shape[1]
        x = x + self.self_attn(x, torch.arange(rows), causal(rows))
        return torch.cat([x, x], dim=-1) + self.mlp(self.post_attention_layernorm(x))


class Fspad(nn.Module):
    """What is scored, and the feature of the next token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc = Sampling(sizes)
        self.layers = nn.ModuleList([TwoEnds(sizes)])
        self.exchanged = False

    def forward(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both [B, N, H]: of token t+1, and of the host's final norm at t. -> twice [B, N, H]."""
        one, other = self.layers[0](self.fc(embeddings, features)).chunk(2, dim=-1)
        return (other, one) if self.exchanged else (one, other)
