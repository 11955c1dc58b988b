"""Run a plugin's kernel on torch tensors: on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from graftline.optional import require
from graftline.plugins.spec import Plan, Plugin, Values


def triton() -> Any:
    """The module triton, imported on first use: the base install has none. Raises BackendError."""
    return require("triton", "kernels")


def kernel(plugin: Plugin) -> Any:
    """The Triton function. Raises BackendError where Triton is missing, with the command that
    installs it."""
    triton()
    module = importlib.import_module(f"graftline.plugins.kernels.{plugin.module}")
    return getattr(module, plugin.module)


def ceil_divide(extent: int, size: int) -> int:
    return -(-extent // size)


def plan_for(
    plugin: Plugin, shapes: Sequence[Sequence[int]], values: Values
) -> tuple[Plan, list[int]]:
    """The launch plan for inputs of these shapes, and the kernel's extents."""
    dims = plugin.dims(shapes, values)
    return plugin.plan(dims, values, ceil_divide), [int(dims[s]) for s in plugin.scalars]


def launch(
    plugin: Plugin, inputs: Sequence[Any], outputs: Sequence[Any], given: Values | None = None
) -> None:
    """Fill `outputs` from `inputs`, contiguous torch tensors on one device.

    For an aliased output pass the same tensor on both sides.
    """
    plan, scalars = plan_for(plugin, [tuple(x.shape) for x in inputs], plugin.values(given))
    kernel(plugin)[plan.grid](
        *inputs, *scalars, *outputs, **plan.constants, num_warps=plan.warps
    )
