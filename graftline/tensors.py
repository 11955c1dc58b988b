"""Small questions about tensors that several rooms ask."""

from __future__ import annotations

import onnx_ir as ir


def static_shape(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape of a tensor, all of whose sizes are known."""
    return ir.Shape([d for d in tensor.shape if isinstance(d, int)])
