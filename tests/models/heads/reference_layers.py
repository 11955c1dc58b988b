"""The parts of a decoder layer in PyTorch, as the heads' descriptions use them. Modules and
parameters have the names of published files, so that a module's state is such a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """Of a tiny host and its heads; `layers` are the host's."""

    hidden: int = 24
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 6
    mlp: int = 40
    vocabulary: int = 61
    layers: int = 12
    epsilon: float = 1e-5
    theta: float = 1e4

    def config(self, **changes: Any) -> dict[str, Any]:
        """A head's config by transformers' names, of one layer."""
        found = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.mlp,
            "head_dim": self.head_size, "rms_norm_eps": self.epsilon, "rope_theta": self.theta,
            "vocab_size": self.vocabulary, "num_hidden_layers": 1, "torch_dtype": "float16",
            "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 0, "initializer_range": 0.02, "use_cache": True,
            "tie_word_embeddings": False, "transformers_version": "4.46.2",
        }  # fmt: skip
        kept = {**found, **changes}
        return {key: value for key, value in kept.items() if value is not ABSENT}


ABSENT = object()
"""A key that is left out."""
TINY = Sizes()


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * (weight + offset)."""

    def __init__(self, size: int, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size) - offset)
        self.epsilon, self.offset = epsilon, offset

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return scaled * (self.weight + self.offset)


def rotated(x: Tensor, positions: Tensor, theta: float, size: int | None = None) -> Tensor:
    """x [B, heads, N, D], its first `size` numbers rotated by its positions [N], halves apart."""
    size = x.shape[-1] if size is None else size
    part, rest = x[..., :size], x[..., size:]
    steps = torch.arange(0, size, 2, dtype=x.dtype) / size
    angles = positions.to(x.dtype)[:, None] * theta ** -steps
    cos, sin = angles.cos(), angles.sin()
    one, other = part.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin, rest], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention whose inputs are `width` wide. `query_norm`: norms over queries and
    keys, with `offset`; `gated`: q_proj also gives a gate per head; `rotary`: how many numbers of
    a head are rotated (None: all)."""

    def __init__(
        self, sizes: Sizes, width: int | None = None, bias: bool = False,
        query_norm: bool = False, offset: float = 0.0, gated: bool = False,
        rotary: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, self.gated, self.rotary = sizes, gated, rotary
        wide, size = width or sizes.hidden, sizes.head_size
        rows = sizes.heads * size * (2 if gated else 1)
        self.q_proj = nn.Linear(wide, rows, bias=bias)
        self.k_proj = nn.Linear(wide, sizes.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(wide, sizes.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(sizes.heads * size, sizes.hidden, bias=False)
        if query_norm:
            self.q_norm = RmsNorm(size, sizes.epsilon, offset)
            self.k_norm = RmsNorm(size, sizes.epsilon, offset)

    def forward(
        self, x: Tensor, positions: Tensor, seen: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """x [B, N, width] at the last of `positions`; keys and values also of `context` before it.
        `seen` [N, all]: which keys a row attends to."""
        size, batch, rows = self.sizes.head_size, x.shape[0], x.shape[1]
        keyed = x if context is None else torch.cat([context, x], dim=1)
        query = self.q_proj(x).view(batch, rows, self.sizes.heads, -1)
        gate = query[..., size:]
        query, key = query[..., :size], self._split(self.k_proj(keyed))
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotated(query.transpose(1, 2), positions[-rows:], self.sizes.theta, self.rotary)
        key = rotated(key.transpose(1, 2), positions, self.sizes.theta, self.rotary)
        value = self._split(self.v_proj(keyed)).transpose(1, 2)
        mixed = attended(query, key, value, seen).transpose(1, 2)
        if self.gated:
            mixed = mixed * torch.sigmoid(gate)
        return self.o_proj(mixed.reshape(batch, rows, -1))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.sizes.head_size)


def attended(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float = 0.0) -> Tensor:
    """softmax(query @ key / sqrt(D)) @ value, each KV head serving a group of query heads."""
    group = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1) @ value


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """An ordinary decoder layer, with norms before attention and MLP; `first_norm`: not where the
    attention's input is normed elsewhere."""

    def __init__(
        self, sizes: Sizes, first_norm: bool = True, offset: float = 0.0, **attention: Any
    ) -> None:
        super().__init__()
        self.self_attn = Attention(sizes, offset=offset, **attention)
        self.mlp: nn.Module = Mlp(sizes.hidden, sizes.mlp)
        if first_norm:
            self.input_layernorm = RmsNorm(sizes.hidden, sizes.epsilon, offset)
        self.post_attention_layernorm = RmsNorm(sizes.hidden, sizes.epsilon, offset)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        inner = self.input_layernorm(x) if hasattr(self, "input_layernorm") else x
        x = x + self.self_attn(inner, positions, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


def causal(rows: int, window: int = 0) -> Tensor:
    """[rows, rows]: each row sees itself and those before, `window` of them (0: all)."""
    far = torch.arange(rows)[:, None] - torch.arange(rows)[None, :]
    return (far >= 0) & (far < window) if window else far >= 0


def drawn(module: nn.Module, seed: int = 0) -> Any:
    """The module in fp64 with random weights that fp32 files hold exactly; norms near 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            norm = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(parameter + 0.2 * noise if norm else 0.3 * noise)
    return module.double().eval()


def state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file: the module's, in fp32."""
    return {
        name: value.float().contiguous() if value.is_floating_point() else value
        for name, value in module.state_dict().items()
    }


def written(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """A head's folder: config.json and model.safetensors."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
