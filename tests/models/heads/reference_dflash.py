"""DFlash and what is built on it in PyTorch, from the descriptions; names as in published files."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models.heads.reference_layers import TINY, Layer, RmsNorm, Sizes


@dataclass(frozen=True)
class Form:
    """A DFlash head of `layers` layers over `taps` hidden states."""

    sizes: Sizes = field(default_factory=lambda: TINY)
    layers: int = 2
    taps: int = 3
    block: int = 4
    windows: tuple[int, ...] = (0, 0)
    causal: tuple[bool, ...] = (False, False)
    query_norm: bool = True
    convolution: tuple[int, int] | None = None
    selector: tuple[int, int] | None = None
    markov: str = ""
    rank: int = 5
    confidence: bool = False
    with_markov: bool = True
    domino: tuple[int, int] | None = None
    drafted: int = 0
    embedding: bool = False


class Convolution(nn.Module):
    """y[t] = sum of (base[k] + dynamic[k, t]) * x[t - k] inside the block, on a part's input and on
    its output; `dynamic`, a number per group of channels, comes from the part's input."""

    def __init__(self, hidden: int, size: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.base_kernel = nn.Parameter(torch.zeros(2, size, hidden))
        groups = hidden // group
        self.kernel_projection = nn.Linear(hidden, 2 * size * groups, bias=False)

    def kernels(self, x: Tensor) -> Tensor:
        """[B, N, 2, size, H]: for the input and the output."""
        _, size, hidden = self.base_kernel.shape
        shape = (*x.shape[:-1], 2, size, hidden // self.group)
        dynamic = self.kernel_projection(x).view(shape).repeat_interleave(self.group, dim=-1)
        return self.base_kernel + dynamic

    @staticmethod
    def mixed(x: Tensor, kernel: Tensor) -> Tensor:
        """x [B, N, H] with its own kernel [B, N, size, H] at every place."""
        found = torch.zeros_like(x)
        for k in range(kernel.shape[2]):
            shifted = functional.pad(x, (0, 0, k, 0))[:, : x.shape[1]]
            found = found + kernel[:, :, k] * shifted
        return found


class DFlashLayer(Layer):
    """A layer whose attention also has keys and values of the host's hidden states."""

    def __init__(self, form: Form) -> None:
        super().__init__(form.sizes, query_norm=form.query_norm)
        if form.convolution:
            self.attention_conv = Convolution(form.sizes.hidden, *form.convolution)
            self.mlp_conv = Convolution(form.sizes.hidden, *form.convolution)

    def over(self, x: Tensor, context: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        inner = self.input_layernorm(x)
        kernels = self.attention_conv.kernels(inner) if hasattr(self, "attention_conv") else None
        if kernels is not None:
            inner = Convolution.mixed(inner, kernels[:, :, 0])
        out = self.self_attn(inner, positions, seen, context)
        x = x + (out if kernels is None else Convolution.mixed(out, kernels[:, :, 1]))
        inner = self.post_attention_layernorm(x)
        kernels = self.mlp_conv.kernels(inner) if hasattr(self, "mlp_conv") else None
        if kernels is not None:
            inner = Convolution.mixed(inner, kernels[:, :, 0])
        out = self.mlp(inner)
        return x + (out if kernels is None else Convolution.mixed(out, kernels[:, :, 1]))


class Selector(nn.Module):
    """DFlash2's scores of candidates."""

    def __init__(self, sizes: Sizes, rank: int) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Parameter(torch.zeros(sizes.vocabulary, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(sizes.vocabulary, rank))
        self.hidden_projection = nn.Linear(sizes.hidden, rank, bias=False)

    def forward(self, hidden: Tensor, before: Tensor, candidates: Tensor) -> Tensor:
        """hidden [B, H], token before [B], candidates [B, k]: what their logits gain."""
        state = self.predecessor_codebook[before] * self.hidden_projection(hidden)
        return (self.successor_codebook[candidates] * state[:, None]).sum(-1)


class Markov(nn.Module):
    """DSpark's bias of a block's logits by the token before each."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        sizes, rank, self.kind = form.sizes, form.rank, form.markov
        self.markov_w1 = nn.Embedding(sizes.vocabulary, rank)
        self.markov_w2 = nn.Linear(rank, form.drafted or sizes.vocabulary, bias=False)
        if self.kind == "gated":
            self.gate_proj = nn.Linear(sizes.hidden + rank, rank)
        if self.kind == "rnn":
            self.joint_proj = nn.Linear(2 * rank + sizes.hidden, 3 * rank)

    def forward(self, before: Tensor, hidden: Tensor) -> Tensor:
        """before [B, N] ids, hidden [B, N, H] -> [B, N, V]."""
        row = self.markov_w1(before)
        if self.kind == "vanilla":
            return self.markov_w2(row)
        if self.kind == "gated":
            gate = torch.sigmoid(self.gate_proj(torch.cat([hidden, row], dim=-1)))
            return self.markov_w2(gate * row)
        state, found = torch.zeros_like(row[:, 0]), []
        for step in range(row.shape[1]):
            joint = torch.cat([state, row[:, step], hidden[:, step]], dim=-1)
            keep, new, out = self.joint_proj(joint).chunk(3, dim=-1)
            keep = torch.sigmoid(keep)
            state = keep * state + (1 - keep) * torch.tanh(new)
            found.append(self.markov_w2(torch.tanh(out)))
        return torch.stack(found, dim=1)


class Confidence(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 1)


class DFlash(nn.Module):
    """The head; the host's embedding and lm_head are given to it."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        sizes, self.form = form.sizes, form
        self.layers = nn.ModuleList(DFlashLayer(form) for _ in range(form.layers))
        self.norm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.hidden_norm = RmsNorm(sizes.hidden, sizes.epsilon)
        self.fc = nn.Linear(form.taps * sizes.hidden, sizes.hidden, bias=False)
        if form.selector:
            self.candidate_selector = Selector(sizes, form.selector[0])
        if form.markov:
            self.markov_head = Markov(form)
        if form.confidence:
            extra = form.rank if form.with_markov else 0
            self.confidence_head = Confidence(sizes.hidden + extra)
        if form.domino:
            state, width = form.domino
            self.prefix_gru = nn.GRU(sizes.hidden, state, batch_first=True, bias=False)
            self.embed_proj = nn.Sequential(
                nn.Linear(sizes.hidden + state, width, bias=False), nn.SiLU(),
                nn.Linear(width, sizes.vocabulary, bias=False),
            )  # fmt: skip
        if form.embedding:
            self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
            self.lm_head = nn.Linear(sizes.hidden, form.drafted, bias=False)

    def forward(self, embeddings: Tensor, taps: Tensor) -> Tensor:
        """embeddings [B, block, H] of the last token and masks, taps [B, past, taps x H] of what
        stands before it: the normed hidden states of the block."""
        context = self.hidden_norm(self.fc(taps))
        x, past, rows = embeddings, taps.shape[1], embeddings.shape[1]
        positions = torch.arange(past + rows)
        for index, layer in enumerate(self.layers):
            seen = self.seen(past, rows, self.form.windows[index], self.form.causal[index])
            x = layer.over(x, context, positions, seen)
        return self.norm(x)

    @staticmethod
    def seen(past: int, rows: int, window: int, causal: bool) -> Tensor:
        """[rows, past + rows]: past and block, within the window and, if causal, not ahead."""
        far = torch.arange(past, past + rows)[:, None] - torch.arange(past + rows)[None, :]
        ahead = torch.ones_like(far, dtype=torch.bool) if not causal else far >= 0
        return ahead & (far.abs() < window) if window else ahead

    def corrected(self, hidden: Tensor, tokens: Tensor, first: int, shifted: bool) -> Tensor:
        """Domino: what the logits gain from row `first` on; tokens [B, block, H], embeddings of the
        block's own tokens."""
        states = self.prefix_gru(tokens)[0]
        before = states[:, first:] if shifted else states[:, first - 1 : -1]
        return self.embed_proj(torch.cat([hidden[:, first:], before], dim=-1))
