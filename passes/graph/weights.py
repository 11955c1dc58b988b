"""Constant matrices of a graph, whatever their layout, read only when somebody needs the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.tensors import origin


@dataclass(frozen=True)
class Matrix:
    """The constant [in, out] operand of a MatMul: an initializer, as stored or behind a Transpose.
    """

    stored: ir.Value
    turned: bool
    """True when the initializer is stored [out, in] and a Transpose turns it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        rows, columns = (int(d) for d in tensor_of(self.stored).shape)  # type: ignore[arg-type]
        return (columns, rows) if self.turned else (rows, columns)

    def numpy(self) -> npt.NDArray[Any]:
        """The numbers, [in, out]."""
        array = tensor_of(self.stored).numpy()
        return array.T if self.turned else array

    def rows(self) -> npt.NDArray[Any]:
        """The numbers, [out, in]."""
        array = tensor_of(self.stored).numpy()
        return array if self.turned else array.T


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer."""
    if value.const_value is None:
        raise ValueError(f"'{value.name}' holds no tensor")
    return value.const_value


def same_tensor(one: ir.Value, other: ir.Value) -> bool:
    """Whether two initializers are one tensor, told without reading it: the same object, or the
    same bytes of one file."""
    return origin(tensor_of(one)) == origin(tensor_of(other))


def constant(value: ir.Value | None) -> ir.Value | None:
    """`value` when it is an initializer with a tensor, else None."""
    if value is None or value.producer() is not None or value.const_value is None:
        return None
    return value


def matrix(value: ir.Value | None) -> Matrix | None:
    """The constant matrix behind a MatMul's second operand, or None when it is not constant."""
    stored = constant(value)
    if stored is not None:
        return Matrix(stored, False) if len(tensor_of(stored).shape) == 2 else None
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "Transpose":
        return None
    stored = constant(maker.inputs[0])
    if stored is None or len(tensor_of(stored).shape) != 2:
        return None
    permutation = maker.attributes.get("perm")
    turned = permutation is None or list(permutation.as_ints()) == [1, 0]
    return Matrix(stored, turned)


def lazy(
    make: Callable[[], npt.NDArray[Any]], dtype: ir.DataType, shape: Sequence[int], name: str
) -> ir.LazyTensor:
    """A tensor whose numbers are made when first asked for, and not kept."""
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(make()), name=name),
        dtype=dtype,
        shape=ir.Shape(list(shape)),
        name=name,
    )
