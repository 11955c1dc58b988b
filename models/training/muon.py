"""Muon with products in fp32.

PyTorch's works in bfloat16, which a processor without such products works out bit by bit: there it
took nine tenths of a step of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
"""Of the iteration (Jordan et al., Muon, 2024)."""
MOMENTUM, TINY, SCALE = 0.95, 1e-7, 0.2
"""SCALE: with sqrt of the longer side, the root mean square of AdamW's steps (arXiv 2502.16982)."""


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Near U V^T of the matrix U S V^T: singular values of 0.5 to 1.5, by Newton and Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(TINY)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, with Nesterov's look ahead and decoupled weight
    decay; for matrices. Steps are as long as AdamW's, so that its learning rates serve."""

    def __init__(
        self, matrices: Iterable[torch.Tensor], lr: float = 1e-3, weight_decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients; `closure` is not called."""
        for group in self.param_groups:
            rate, decay = float(group["lr"]), float(group["weight_decay"])
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, rate, decay)

    def _move(self, matrix: torch.Tensor, rate: float, decay: float) -> None:
        known = self.state[matrix]
        if not known:
            known["momentum_buffer"] = torch.zeros_like(matrix)
        mean: torch.Tensor = known["momentum_buffer"]
        assert matrix.grad is not None
        mean.lerp_(matrix.grad, 1 - MOMENTUM)
        ahead = orthogonal(matrix.grad.lerp(mean, MOMENTUM))
        matrix.mul_(1 - rate * decay)
        matrix.add_(ahead, alpha=-rate * SCALE * math.sqrt(max(matrix.shape)))
