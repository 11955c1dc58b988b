"""Accelerators in training, after the idea of M2R2 (arXiv 2502.02040): a stream beside that of the
frozen host's first blocks learns to be, behind an early one, what the host's head would score as
the host itself does. The formulas are ours: `passes/grafts/accelerators.py`.

Nothing of the host reads that stream, so that what its blocks make of a text is read once, as for
an exit's adapter, and a draft of any length reads what training read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu

from graftline.errors import CheckpointError, GraftlineError
from graftline.exits import check_exits
from graftline.models.heads.m2r2 import DOWN, EXIT_LAYER, SCALE, UP
from graftline.models.heads.m2r2 import RANK as RANK_KEY
from graftline.models.training.frozen import ENTERED, FrozenHost
from graftline.models.training.host_scored import HostScored
from graftline.models.training.packs import Pack
from graftline.models.training.student import Published

EXIT, RANK = 8, 64
"""After how many blocks, and of which rank, unless it is said: of SmolLM2's 30 blocks of 576
numbers an exit then reads a fiftieth more than its blocks do."""
STEPS = 3
"""Drafts of a chain that are counted on held-out texts; one of them is learned, which is all."""
EPSILON = 1e-6


def accelerated_layers(blocks: int) -> Callable[[int], tuple[int, ...]]:
    """The taps of a host of so many layers: what enters the first of the first `blocks` blocks, and
    what leaves each. Raises GraftlineError where none is left behind them."""

    def layers(count: int) -> tuple[int, ...]:
        check_exits((blocks,), count)
        return (ENTERED, *range(blocks))

    return layers


class AcceleratorModule(nn.Module):
    """For each block the scale of its step less 1, A [r, H] as a linear layer begins, and B [H, r]
    of zeros: the stream begins as the host's own."""

    def __init__(self, blocks: int, hidden: int, rank: int) -> None:
        super().__init__()
        down = (nn.Parameter(torch.empty(rank, hidden)) for _ in range(blocks))
        up = (nn.Parameter(torch.zeros(hidden, rank)) for _ in range(blocks))
        self.gain = nn.Parameter(torch.zeros(blocks))
        self.down, self.up = nn.ParameterList(down), nn.ParameterList(up)
        for matrix in self.down:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, streams: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of what enters the first block and leaves each [B, L, H], the stream beside the last."""
        ahead = torch.zeros_like(streams[0])
        for block, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            before, after = streams[block], streams[block + 1]
            state = rms_norm(before + ahead, before.shape[-1:], eps=EPSILON)
            ahead = ahead + self.gain[block] * (after - before)
            ahead = ahead + linear(silu(linear(state, down)), up)
        return streams[-1] + ahead


class M2r2(HostScored):
    """Accelerators of the first blocks of a frozen host that is tapped around each."""

    places = None
    depths = STEPS

    def __init__(self, host: FrozenHost, rank: int, text: Sequence[int]) -> None:
        """`text`: ids by which the host's final norm is recognised. Raises GraftlineError for a
        rank beyond the host's width, and CheckpointError where no norm is found."""
        if rank > host.hidden:
            raise GraftlineError(f"--rank {rank}: the model's hidden states have {host.hidden}")
        self.lm_head, self.bias, self.source = host.lm_head, host.bias, host.source
        self.drafted, self.vocabulary = torch.arange(host.vocabulary), host.vocabulary
        self.blocks, self.layers, self.rank = len(host.tapped) - 1, host.layers, rank
        self.module = AcceleratorModule(self.blocks, host.hidden, rank)
        self.norm = final_norm(host, text)

    def drafts(self, pack: Pack) -> Sequence[torch.Tensor]:
        """The same states for every depth: a draft further on is read at its own position."""
        return [self.norm(self.module(pack.taps.chunk(self.blocks + 1, dim=-1)))] * STEPS

    def place(self, depth: int) -> int:
        """An exit's states stand at the token before the one that they foretell."""
        return depth + 1

    def weight(self, depth: int) -> float:
        """The first draft's states are those of all."""
        return 0.0 if depth else 1.0

    def published(self) -> Published:
        """model.safetensors and config.json."""
        config: dict[str, Any] = {
            "base_model_name_or_path": self.source, RANK_KEY: self.rank, EXIT_LAYER: self.blocks,
            "hidden_size": self.module.down[0].shape[1], "num_hidden_layers": self.layers,
            "rms_norm_eps": EPSILON,
        }  # fmt: skip
        tensors: dict[str, torch.Tensor] = {}
        for block in range(self.blocks):
            tensors[SCALE.format(block)] = 1 + self.module.gain[block : block + 1]
            tensors[DOWN.format(block)] = self.module.down[block]
            tensors[UP.format(block)] = self.module.up[block]
        notes = {"exit": f"behind the first {self.blocks} blocks"}
        return Published("M2R2", "model.safetensors", config, tensors, notes)


@torch.no_grad()
def final_norm(host: FrozenHost, text: Sequence[int]) -> nn.Module:
    """The module of a host that makes what its lm_head reads of what its last block gives, found
    by what goes through it over a text. Raises CheckpointError where there is none."""
    ends: list[torch.Tensor] = []
    seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def ended(module: Any, given: Any, out: Any) -> None:
        ends.append(out[0] if isinstance(out, tuple) else out)

    def passed(module: Any, given: Any, out: Any) -> None:
        if len(given) == 1 and isinstance(out, torch.Tensor):
            seen.append((module, given[0], out))

    hooks = [host.blocks[-1].register_forward_hook(ended)]
    leaves = [m for m in host.model.modules() if not any(m.children())]
    hooks += [module.register_forward_hook(passed) for module in leaves]
    try:
        read, _ = host.read(text)
    finally:
        for hook in hooks:
            hook.remove()
    for module, given, out in seen:
        if _same(given, ends[0]) and _same(out[0].float(), read):
            return module.requires_grad_(False)
    raise CheckpointError(
        f"{host.folder}: no norm alone stands between the model's last block and its lm_head; "
        "accelerators are trained for models whose head reads an early block as it reads the last"
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
