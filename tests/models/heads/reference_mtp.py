"""Layers of multi-token prediction in PyTorch, from their descriptions; names of published files,
below whatever prefix a layout gives them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.heads.reference_layers import (
    Layer,
    Mlp,
    RmsNorm,
    Sizes,
    attended,
    causal,
)


class Router(nn.Module):
    """The scores of experts; `corrected`: a bias that only the choice sees."""

    def __init__(self, hidden: int, count: int, corrected: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, hidden))
        if corrected:
            self.e_score_correction_bias = nn.Parameter(torch.zeros(count))


class Softmax(nn.Module):
    """Qwen3-Next's mixture: softmax over all, the best `chosen` normed, a gated shared expert."""

    def __init__(self, sizes: Sizes, count: int, chosen: int, size: int, shared: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.gate = Router(sizes.hidden, count, corrected=False)
        self.experts = nn.ModuleList(Mlp(sizes.hidden, size) for _ in range(count))
        self.shared_expert = Mlp(sizes.hidden, shared)
        self.shared_expert_gate = nn.Linear(sizes.hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights, best = torch.softmax(x @ self.gate.weight.T, dim=-1).topk(self.chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        found = torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        for index, expert in enumerate(self.experts):
            share = (weights * (best == index)).sum(-1, keepdim=True)
            found = found + share * expert(x)
        return found


class Sigmoid(nn.Module):
    """DeepSeek-V3's mixture: sigmoids; the choice falls on corrected scores of the best groups."""

    def __init__(
        self, sizes: Sizes, count: int, chosen: int, size: int, groups: int, kept: int,
        scale: float, normed: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.chosen, self.groups, self.kept, self.scale = chosen, groups, kept, scale
        self.normed = normed
        self.gate = Router(sizes.hidden, count, corrected=True)
        self.experts = nn.ModuleList(Mlp(sizes.hidden, size) for _ in range(count))
        self.shared_experts = Mlp(sizes.hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(x @ self.gate.weight.T)
        corrected = scores + self.gate.e_score_correction_bias
        grouped = corrected.unflatten(-1, (self.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept, dim=-1).indices
        held = torch.zeros_like(grouped[..., 0]).scatter(-1, best, 1.0).bool()
        grouped = grouped.masked_fill(~held[..., None], -torch.inf)
        best = grouped.flatten(-2).topk(self.chosen, dim=-1).indices
        weights = scores.gather(-1, best)
        if self.normed:
            weights = weights / weights.sum(-1, keepdim=True)
        found = self.shared_experts(x)
        for index, expert in enumerate(self.experts):
            share = (self.scale * weights * (best == index)).sum(-1, keepdim=True)
            found = found + share * expert(x)
        return found


class LatentAttention(nn.Module):
    """Multi-head latent attention: a vector per position makes keys and values of all heads; the
    rotary numbers, in interleaved pairs, are shared by the heads. `yarn`: (factor, mscale, the
    original number of positions)."""

    def __init__(
        self, sizes: Sizes, query_rank: int | None, rank: int, plain: int, rotary: int, value: int,
        yarn: tuple[float, float, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, self.rank, self.plain, self.rotary = sizes, rank, plain, rotary
        self.value, size, hidden = value, plain + rotary, sizes.hidden
        if query_rank is None:
            self.q_proj = nn.Linear(hidden, sizes.heads * size, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, query_rank, bias=False)
            self.q_a_layernorm = RmsNorm(query_rank, 1e-6)
            self.q_b_proj = nn.Linear(query_rank, sizes.heads * size, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, rank + rotary, bias=False)
        self.kv_a_layernorm = RmsNorm(rank, 1e-6)
        self.kv_b_proj = nn.Linear(rank, sizes.heads * (plain + value), bias=False)
        self.o_proj = nn.Linear(sizes.heads * value, hidden, bias=False)
        self.yarn = yarn
        factor = 1.0 if yarn is None else 0.1 * yarn[1] * math.log(yarn[0]) + 1.0
        self.scale = size**-0.5 * factor * factor

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        direct = hasattr(self, "q_proj")
        query = self.q_proj(x) if direct else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        query = query.view(batch, rows, self.sizes.heads, -1).transpose(1, 2)
        low, key = self.kv_a_proj_with_mqa(x).split([self.rank, self.rotary], dim=-1)
        made = self.kv_b_proj(self.kv_a_layernorm(low)).view(batch, rows, self.sizes.heads, -1)
        plain, value = made.transpose(1, 2).split([self.plain, self.value], dim=-1)
        turned = self.turned(key[:, None], positions).expand(-1, self.sizes.heads, -1, -1)
        query = torch.cat(
            [query[..., : self.plain], self.turned(query[..., self.plain :], positions)], dim=-1
        )
        mixed = attended(query, torch.cat([plain, turned], dim=-1), value, seen, self.scale)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1))

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Pairs of neighbours, turned by their position."""
        steps = torch.arange(0, self.rotary, 2, dtype=x.dtype) / self.rotary
        frequencies = self.sizes.theta ** -steps
        if self.yarn is not None:
            frequencies = self.stretched(frequencies)
        angles = positions.to(x.dtype)[:, None] * frequencies
        one, other, cos, sin = x[..., 0::2], x[..., 1::2], angles.cos(), angles.sin()
        return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)

    def stretched(self, frequencies: Tensor) -> Tensor:
        """Yarn (arXiv 2309.00071): those that turn less than once over the original positions are
        divided by the factor, those that turn 32 times are kept, and between is a ramp."""
        factor, _, original = self.yarn or (1.0, 0.0, 1)

        def place(turns: float) -> float:
            waves = math.log(original / (turns * 2 * math.pi))
            return self.rotary * waves / (2 * math.log(self.sizes.theta))

        first, last = math.floor(place(32.0)), math.ceil(place(1.0))
        first, last = max(first, 0), min(last, self.rotary - 1)
        ramp = (torch.arange(len(frequencies)).to(frequencies) - first) / max(last - first, 0.001)
        share = ramp.clamp(0.0, 1.0)
        return frequencies / factor * share + frequencies * (1.0 - share)


class Mtp(nn.Module):
    """The names of `mtp.*`: norms, fc, one layer, a final norm."""

    def __init__(self, sizes: Sizes, offset: float, mlp: nn.Module | None = None, **attention: Any):
        super().__init__()
        layer = Layer(sizes, offset=offset, **attention)
        layer.mlp = layer.mlp if mlp is None else mlp
        self.fc = nn.Linear(2 * sizes.hidden, sizes.hidden, bias=False)
        self.pre_fc_norm_embedding = RmsNorm(sizes.hidden, sizes.epsilon, offset)
        self.pre_fc_norm_hidden = RmsNorm(sizes.hidden, sizes.epsilon, offset)
        self.layers = nn.ModuleList([layer])
        self.norm = RmsNorm(sizes.hidden, sizes.epsilon, offset)

    def forward(self, embeddings: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Both [B, N, H], of token t+1 and of t: what is fed back, and what lm_head scores."""
        both = [self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)]
        rows = hidden.shape[1]
        x = self.fc(torch.cat(both, dim=-1))
        normed = self.norm(self.layers[0](x, torch.arange(rows), causal(rows)))
        return normed, normed


class SharedHead(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)


class Behind(Layer):
    """The names of a layer behind the host's last."""

    def __init__(
        self, sizes: Sizes, mlp: nn.Module | None = None, latent: nn.Module | None = None,
        **attention: Any,
    ) -> None:  # fmt: skip
        super().__init__(sizes, **attention)
        self.mlp = self.mlp if mlp is None else mlp
        if latent is not None:
            self.self_attn = latent  # type: ignore[assignment]
        self.enorm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.hnorm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.eh_proj = nn.Linear(2 * sizes.hidden, sizes.hidden, bias=False)
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.shared_head = SharedHead(sizes)

    def step(self, embeddings: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What is fed back, and what lm_head scores."""
        rows = hidden.shape[1]
        x = self.eh_proj(torch.cat([self.enorm(embeddings), self.hnorm(hidden)], dim=-1))
        x = self(x, torch.arange(rows), causal(rows))
        return x, self.shared_head.norm(x)
