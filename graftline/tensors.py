"""Tensors that know what they are made of, so that a bundle can store the source in their place."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir


def static_shape(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape of a tensor, all of whose sizes are known."""
    return ir.Shape([d for d in tensor.shape if isinstance(d, int)])


class Widened(ir.LazyTensor):
    """A bf16 or fp16 tensor in a type that holds all its numbers, converted when it is read.

    `narrow` is the tensor as it lies in its file.
    """

    __slots__ = ("narrow",)

    def __init__(self, narrow: ir.ExternalTensor, dtype: ir.DataType, name: str) -> None:
        super().__init__(self._read, dtype=dtype, shape=static_shape(narrow), name=name)
        self.narrow = narrow

    def _read(self) -> ir.TensorProtocol:
        return ir.Tensor(unmapped(self.narrow).astype(self.dtype.numpy()), name=self.name)


class Stacked(ir.LazyTensor):
    """Tensors of one dtype below one another (along the first axis), joined when it is read."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[ir.TensorProtocol], name: str) -> None:
        first = parts[0].shape.numpy()
        rows = sum(part.shape.numpy()[0] for part in parts)
        shape = ir.Shape([rows, *first[1:]])
        super().__init__(self._read, dtype=parts[0].dtype, shape=shape, name=name)
        self.parts = tuple(parts)

    def _read(self) -> ir.TensorProtocol:
        arrays = [numbers(part) for part in self.parts]
        return ir.Tensor(np.concatenate(arrays), dtype=self.dtype, name=self.name)


def row_range(
    tensor: ir.TensorProtocol, first: int, count: int, name: str
) -> ir.TensorProtocol:
    """`count` rows (of the first axis) of a tensor from row `first` on, unread: those of a tensor
    in a file are a place in that file."""
    rows, *rest = tensor.shape.numpy()
    assert 0 <= first <= first + count <= rows, "the tensor has these rows"
    if isinstance(tensor, Widened):
        return Widened(_place(tensor.narrow, first, count, name), tensor.dtype, name)
    if isinstance(tensor, ir.ExternalTensor):
        return _place(tensor, first, count, name)

    def read() -> ir.TensorProtocol:
        part = numbers(tensor)[first : first + count]
        return ir.Tensor(np.ascontiguousarray(part), dtype=tensor.dtype, name=name)

    shape = ir.Shape([count, *rest])
    return ir.LazyTensor(read, dtype=tensor.dtype, shape=shape, name=name)


def _place(tensor: ir.ExternalTensor, first: int, count: int, name: str) -> ir.ExternalTensor:
    rows, *rest = tensor.shape.numpy()
    each = tensor.nbytes // rows
    return ir.ExternalTensor(
        tensor.path, (tensor.offset or 0) + first * each, count * each, tensor.dtype,
        shape=ir.Shape([count, *rest]), name=name,
    )  # fmt: skip


def unmapped(tensor: ir.ExternalTensor) -> np.ndarray:
    """The numbers of a tensor in a file, by a mapping of its own, which goes with the array."""
    own = ir.ExternalTensor(
        tensor.path, tensor.offset, tensor.length, tensor.dtype,
        shape=static_shape(tensor), name=tensor.name,
    )  # fmt: skip
    return own.numpy()


def numbers(tensor: ir.TensorProtocol) -> np.ndarray:
    """The numbers of a tensor. Those in a file are mapped as long as somebody holds the array; by
    the tensor's own `numpy` they would be as long as it lives, and count as memory."""
    return unmapped(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()


def origin(tensor: ir.TensorProtocol) -> Hashable:
    """What tells a tensor's bytes without reading them: where they come from, or the object."""
    if isinstance(tensor, ir.ExternalTensor):
        return file_of(tensor), tensor.offset, tensor.nbytes
    if isinstance(tensor, Widened):
        return tensor.dtype, origin(tensor.narrow)
    if isinstance(tensor, Stacked):
        return tuple(origin(part) for part in tensor.parts)
    return id(tensor)


def file_of(tensor: ir.ExternalTensor) -> Path:
    """The file that a tensor lies in, as an absolute path."""
    return Path(os.path.abspath(tensor.path))
