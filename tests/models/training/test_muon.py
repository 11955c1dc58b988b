"""Muon in fp32, beside PyTorch's in bfloat16."""

from __future__ import annotations

import pytest
import torch

from graftline.models.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_steps_are_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = orthogonal(matrix)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.5
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(
        made.flatten(), (left @ right).flatten(), dim=0
    ) > 0.95  # fmt: skip


def test_it_goes_where_pytorchs_goes() -> None:
    """To the 8 bits of a bfloat16, over ten steps that are each its own size."""
    random = torch.Generator().manual_seed(2)
    begin = torch.randn(12, 20, generator=random)
    grads = [torch.randn(12, 20, generator=random) for _ in range(10)]
    ends: list[torch.Tensor] = []
    for kind, more in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        matrix = torch.nn.Parameter(begin.clone())
        optimizer = kind([matrix], lr=0.01, weight_decay=0.1, **more)  # type: ignore[arg-type]
        for grad in grads:
            matrix.grad = grad.clone()
            optimizer.step()
        ends.append(matrix.detach())
    ours, theirs = ends
    moved = float((theirs - begin).norm())
    assert float((ours - theirs).norm()) < 0.05 * moved
    assert moved > 0.1
    assert ours.dtype == torch.float32
