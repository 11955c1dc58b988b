"""Kernels on torch tensors, from numpy arrays and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from graftline.evaluate import Array
from graftline.plugins.launch import launch
from graftline.plugins.spec import Plugin, Values

if TYPE_CHECKING:
    import torch


def tensor(x: Array, device: str) -> torch.Tensor:
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(x.copy()).to(device)


def array(x: torch.Tensor) -> Array:
    import torch

    x = x.cpu()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def run_kernel(
    plugin: Plugin, inputs: Sequence[Array], values: Values | None, device: str
) -> list[Array]:
    """The kernel's outputs, which begin as poison; aliased ones are the changed inputs."""
    given = [tensor(x, device) for x in inputs]
    by_name = {t.name: x for t, x in zip(plugin.inputs, given, strict=True)}
    outputs: list[torch.Tensor] = []
    for t, empty in zip(plugin.outputs, plugin.empty(inputs, plugin.values(values)), strict=True):
        made = tensor(empty, device)
        poisoned = made.fill_(float("nan") if made.is_floating_point() else -77)
        outputs.append(by_name[plugin.aliases[t.name]] if t.name in plugin.aliases else poisoned)
    launch(plugin, given, outputs, values)
    return [array(x) for x in outputs]
