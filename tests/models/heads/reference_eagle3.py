"""EAGLE-3 in PyTorch, from its description (arXiv 2503.01840), with what later versions add."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models.heads.reference_layers import TINY, Layer, RmsNorm, Sizes, causal


@dataclass(frozen=True)
class Form:
    """The switches of an EAGLE-3 head; `taps` of `host_hidden` numbers each."""

    sizes: Sizes = field(default_factory=lambda: TINY)
    layers: int = 1
    taps: int = 3
    host_hidden: int = TINY.hidden
    drafted: int = 23
    norm_before_fc: bool = False
    fc_norm: bool = False
    residual_normed: bool = False
    norm_output: bool = False
    qk_norm: bool = False
    bias: bool = False
    embedding: bool = False
    mask: bool = False
    windows: tuple[int, ...] = ()
    parallel: int = 0
    parallel_layers: int = 1


def attention(form: Form) -> dict[str, Any]:
    """The switches of a layer's attention."""
    return {"query_norm": form.qk_norm, "bias": form.bias}


class FirstLayer(Layer):
    """The layer that reads the embedding beside the hidden state."""

    def __init__(self, form: Form) -> None:
        sizes = form.sizes
        super().__init__(sizes, **attention(form), width=2 * sizes.hidden)
        self.residual_normed = form.residual_normed
        self.hidden_norm = RmsNorm(sizes.hidden, sizes.epsilon)

    def step(self, embeddings: Tensor, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        normed = self.hidden_norm(x)
        both = torch.cat([self.input_layernorm(embeddings), normed], dim=-1)
        x = (normed if self.residual_normed else x) + self.self_attn(both, positions, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class Block(nn.Module):
    """x + silu(linear(x))."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.silu(self.linear(x))


class ParallelHead(nn.Module):
    """One of ModelOpt's parallel heads."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        hidden = form.sizes.hidden
        self.medusa_layers = nn.Sequential(*(Block(hidden) for _ in range(form.parallel_layers)))
        self.lm_head = nn.Linear(hidden, form.drafted, bias=False)


class Eagle3(nn.Module):
    """The head, with the names of newer files (`layers.0.*`)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        sizes, self.form = form.sizes, form
        wide = form.taps * form.host_hidden
        if form.norm_before_fc:
            self.input_norm = RmsNorm(wide, sizes.epsilon)
        if form.fc_norm:
            norms = (RmsNorm(form.host_hidden, sizes.epsilon) for _ in range(form.taps))
            self.fc_norm = nn.ModuleList(norms)
        self.fc = nn.Linear(wide, sizes.hidden, bias=False)
        rest = (Layer(sizes, **attention(form)) for _ in range(form.layers - 1))
        self.layers = nn.ModuleList([FirstLayer(form), *rest])
        self.norm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.lm_head = nn.Linear(sizes.hidden, form.drafted, bias=False)
        if form.embedding:
            self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        if form.mask:
            self.mask_hidden = nn.Parameter(torch.zeros(1, 1, wide))
        if form.parallel:
            heads = (ParallelHead(form) for _ in range(form.parallel))
            self.parallel_draft_heads = nn.ModuleList(heads)

    def entry(self, taps: Tensor) -> Tensor:
        """taps [B, N, taps x host hidden] -> x [B, N, H]."""
        if self.form.norm_before_fc:
            taps = self.input_norm(taps)
        if self.form.fc_norm:
            parts = taps.split(self.form.host_hidden, dim=-1)
            taps = torch.cat([n(p) for n, p in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return self.fc(taps)

    def step(self, embeddings: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One step over rows [B, N, H]: what is fed back, and the logits of the head's tokens."""
        rows = x.shape[1]
        windows = self.form.windows or (0,) * self.form.layers
        positions = torch.arange(rows)
        x = self.layers[0].step(embeddings, x, positions, causal(rows, windows[0]))
        for layer, window in zip(self.layers[1:], windows[1:], strict=True):
            x = layer(x, positions, causal(rows, window))
        normed = self.norm(x)
        return (normed if self.form.norm_output else x), self.lm_head(normed)

    def further(self, normed: Tensor) -> list[Tensor]:
        """The parallel heads' logits from the normed output of the last layer."""
        return [head.lm_head(head.medusa_layers(normed)) for head in self.parallel_draft_heads]
