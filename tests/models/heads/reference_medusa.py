"""Medusa's heads in PyTorch, written from their description (arXiv 2401.10774): a stack of residual
blocks, h + SiLU(linear(h)), and a matrix per head, or the host's lm_head."""

from __future__ import annotations

from typing import Any

import torch


class Block(torch.nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(hidden, hidden)

    def forward(self, state: Any) -> Any:
        return state + torch.nn.functional.silu(self.linear(state))


def medusa(hidden: int, vocabulary: int, heads: int, layers: int, tied: bool) -> torch.nn.Module:
    """As it is trained and saved: `medusa_head.state_dict()`. `tied`: one block, listed often."""
    made: list[torch.nn.Module] = []
    for _ in range(heads):
        first = Block(hidden)
        blocks = [first] * layers if tied else [first, *(Block(hidden) for _ in range(layers - 1))]
        matrix = torch.nn.Linear(hidden, vocabulary, bias=False)
        made.append(torch.nn.Sequential(*blocks, matrix))
    return torch.nn.ModuleList(made)


def logits(module: Any, states: Any) -> Any:
    """[heads, ..., V] of states [..., H]."""
    return torch.stack([head(states) for head in module])
