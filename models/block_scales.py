"""FP8 weights with a scale per block of rows and columns, multiplied out when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.models.weights import Stored

SCALE = "_scale_inv"
"""`X.weight` [.., R, C] in FP8 has `X.weight_scale_inv`: [.., ceil(R/b), ceil(C/c)] multipliers."""
FP8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
ACTIVATIONS = r"\.(activation_scale|input_scale)$"
"""Scales of activations, which stay in the graph's own precision here."""

Block = tuple[int, int]


def block_of(file: str, quantization: Any) -> Block | None:
    """The block of a config's FP8 weights; (0, 0): one scale per tensor; None: not quantized.

    Raises CheckpointError for every other method, by its name.
    """
    if not quantization:
        return None
    options: Mapping[str, Any] = (
        quantization if isinstance(quantization, dict) else vars(quantization)
    )
    method = str(getattr(options.get("quant_method"), "value", options.get("quant_method")))
    if method != "fp8":
        raise CheckpointError(
            f"{file}: its weights are quantized by '{method}', which graftline does not read; give "
            "the unquantized checkpoint (graftline quantizes it by --dtype int8 or int4) or a GGUF"
        )
    block = options.get("weight_block_size")
    if block is None:
        return (0, 0)
    rows, columns = (int(n) for n in block)
    if min(rows, columns) < 1:
        raise CheckpointError(
            f"{file}: weight_block_size={block!r} is not a block size; correct it"
        )
    return rows, columns


def scaled(
    weight: Stored, scale: Stored, block: Block, name: str, dtype: ir.DataType
) -> ir.LazyTensor:
    """The weight times its blocks' scales as a `dtype` tensor `name`, read on first use.

    Raises CheckpointError where the scales' shape is not the blocks'.
    """
    if len(weight.shape) < 2:
        raise CheckpointError(
            f"checkpoint: FP8 tensor '{weight.name}' is not a matrix, as block scales need; "
            "give the unquantized checkpoint"
        )
    rows, columns = (
        (have if size == 0 else size) for size, have in zip(block, weight.shape[-2:], strict=True)
    )
    grid = (-(-weight.shape[-2] // rows), -(-weight.shape[-1] // columns))
    if scale.shape[-2:] != grid and not (block == (0, 0) and np.prod(scale.shape) == 1):
        raise CheckpointError(
            f"checkpoint: scales '{scale.name}' are {list(scale.shape)}, but '{weight.name}' in "
            f"blocks of {rows}x{columns} needs {list(grid)}; download the checkpoint again"
        )

    def read() -> ir.TensorProtocol:
        values = weight.external(weight.name).numpy().astype(np.float32)
        by = scale.external(scale.name).numpy().astype(np.float32)
        by = by.reshape(*weight.shape[:-2], *grid)
        wide = by.repeat(rows, axis=-2).repeat(columns, axis=-1)
        values *= wide[..., : weight.shape[-2], : weight.shape[-1]]
        return ir.Tensor(values.astype(dtype.numpy()), name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(weight.shape), name=name)
