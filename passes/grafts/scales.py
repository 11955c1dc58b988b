"""Scales of a sampling loop: noise of each, and a sample doubled from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.emit import Emit

FACTOR = 2 / np.sqrt(3)
"""Of noise without its blocks' averages, for a variance of 1."""


def check_sizes(sizes: Sequence[int | ir.SymbolicDim], who: str) -> None:
    """Raise NotApplicable unless a network takes samples of any height and width."""
    if any(isinstance(size, int) for size in sizes):
        told = " x ".join(map(str, sizes))
        raise NotApplicable(
            f"{who} calls the denoiser at several sizes, and it takes samples of {told} alone; "
            "export it with a free height and width"
        )


def by_scale(emit: Emit, noise: ir.Value, scales: int) -> list[ir.Value]:
    """Unit noise [B, C, H, W] as each scale's own, the coarsest first: unit noise of a 2^(scales -
    1)th of its height and width, and behind it noise that is 0 on average in blocks of 2 x 2."""
    assert noise.dtype is not None
    kind, finer = noise.dtype.numpy(), list[ir.Value]()
    for _ in range(scales - 1):
        blocks = emit.op("AveragePool", [noise], kernel_shape=[2, 2], strides=[2, 2])
        within = emit.op("Sub", [noise, doubled(emit, blocks)])
        factor = emit.const("within.blocks", np.asarray(FACTOR, kind))
        finer.append(emit.op("Mul", [within, factor]))
        noise = emit.op("Mul", [blocks, emit.const("of.averages", np.asarray(2, kind))])
    return [noise, *reversed(finer)]


def doubled(emit: Emit, value: ir.Value) -> ir.Value:
    """Every place of [B, C, H, W] as a block of 2 x 2."""
    sizes = emit.const("twice", np.asarray([1, 1, 2, 2], np.float32))
    return emit.op(
        "Resize", [value, None, sizes], mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
