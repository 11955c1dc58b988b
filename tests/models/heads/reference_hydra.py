"""Hydra heads in PyTorch, from their description (arXiv 2402.05109), named as in their files."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models.heads.reference_layers import (
    Attention,
    Layer,
    Mlp,
    RmsNorm,
    Sizes,
    attended,
    causal,
    rotated,
)


class ResBlock(nn.Module):
    """residual(x) + silu(linear(x)); the residual is x itself where widths agree."""

    def __init__(self, hidden: int, conditions: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden * (conditions + 1), hidden)
        if conditions:
            self.res_connection = nn.Linear(hidden * (conditions + 1), hidden)

    def forward(self, x: Tensor) -> Tensor:
        through = self.res_connection(x) if hasattr(self, "res_connection") else x
        return through + functional.silu(self.linear(x))


class Prefix(nn.Module):
    """A one-layer Llama over hidden states."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(sizes)])
        self.norm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[1]
        return self.norm(self.layers[0](x, torch.arange(rows), causal(rows)))


class Stacks(nn.Module):
    """`mlp` heads, or with `prefix` the `prefix-mlp` heads, whose dropouts take numbers."""

    def __init__(
        self, sizes: Sizes, heads: int, layers: int, grounded: bool = True, prefix: bool = False
    ) -> None:
        super().__init__()
        self.grounded = grounded
        if prefix:
            self.prefix_embeding_layer = Prefix(sizes)
        stacks, scores = [], []
        for head in range(heads):
            first = ResBlock(sizes.hidden, head + 1 if grounded else 0)
            blocks = [first, *(ResBlock(sizes.hidden) for _ in range(layers - 1))]
            lm_head = nn.Linear(sizes.hidden, sizes.vocabulary)
            spaced = [m for block in blocks for m in (nn.Dropout(0.0), block)] if prefix else blocks
            stacks.append(nn.Sequential(*spaced))
            scores.append(nn.Sequential(nn.Dropout(0.0), lm_head) if prefix else lm_head)
        self.hydra_mlp, self.hydra_lm_head = nn.ModuleList(stacks), nn.ModuleList(scores)

    def forward(self, hidden: Tensor, embeddings: Tensor) -> list[Tensor]:
        """hidden [B, N, H] and embeddings [B, N, heads, H] of tokens t+1, t+2, ...; the logits of
        every head."""
        if hasattr(self, "prefix_embeding_layer"):
            hidden = self.prefix_embeding_layer(hidden)
        found = []
        pairs = zip(self.hydra_mlp, self.hydra_lm_head, strict=True)
        for index, (stack, score) in enumerate(pairs):
            drafted = embeddings[:, :, : index + 1].flatten(2)
            x = torch.cat([hidden, drafted], dim=-1) if self.grounded else hidden
            found.append(score(stack(x)))
        return found


class CrossAttention(nn.Module):
    """Queries of embeddings, keys and values of hidden states; rotary base 10000."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.cross_attn = Attention(sizes)
        self.mlp = Mlp(sizes.hidden, sizes.mlp)
        self.input_layernorm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.post_attention_layernorm = RmsNorm(sizes.hidden, sizes.epsilon)

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Both [B, N, H]: of token t+1 and of t. What the host's lm_head scores."""
        (batch, rows, _), parts = hidden.shape, self.cross_attn
        positions, keyed = torch.arange(rows), self.input_layernorm(hidden)

        def split(x: Tensor) -> Tensor:
            return x.view(batch, rows, -1, self.sizes.head_size).transpose(1, 2)

        query = rotated(split(parts.q_proj(self.input_layernorm(embeddings))), positions, 1e4)
        key = rotated(split(parts.k_proj(keyed)), positions, 1e4)
        mixed = attended(query, key, split(parts.v_proj(keyed)), causal(rows))
        x = embeddings + parts.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1))
        return x + self.mlp(self.post_attention_layernorm(x))


class EagleAttention(nn.Module):
    """An ordinary layer over fc([embedding; hidden])."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * sizes.hidden, sizes.hidden)
        self.attn = Layer(sizes)

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        rows = hidden.shape[1]
        x = self.fc(torch.cat([embeddings, hidden], dim=-1))
        return self.attn(x, torch.arange(rows), causal(rows))
