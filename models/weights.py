"""Weights where they already lie: safetensors tensors as ONNX external data, never copied.

A safetensors file is an 8-byte little-endian header length, a JSON header, and raw little-endian
tensors; ONNX external data is (file, offset, length). So an initializer can point into the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.files import FileState, file_state
from graftline.tensors import Widened

HEADER_LIMIT = 100_000_000
"""Largest header the safetensors format allows, in bytes."""

DTYPES: Mapping[str, ir.DataType] = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
    "BOOL": ir.DataType.BOOL,
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file: `length` raw bytes at `offset` of `file`."""

    name: str
    file: Path
    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    length: int
    state: FileState | None = None
    """The file's, when its header was read."""

    def external(self, name: str) -> ir.ExternalTensor:
        """This tensor, unread, as external data named `name`.

        The path is absolute and without a base folder: onnx_ir refuses files with several hard
        links below a base folder, and bundles hard-link checkpoints.
        """
        return ir.ExternalTensor(
            location=os.path.abspath(self.file),
            offset=self.offset,
            length=self.length,
            dtype=self.dtype,
            shape=ir.Shape(self.shape),
            name=name,
        )


@dataclass(frozen=True)
class WeightSource:
    """Every tensor of a checkpoint by name, read from the headers only.

    `block` is the block of FP8 weights that have scales of their own (`block_scales`).
    """

    stored: Mapping[str, Stored]
    block: tuple[int, int] | None = None

    @property
    def numbers(self) -> int:
        """How many numbers all the tensors hold together."""
        return sum(math.prod(s.shape) for s in self.stored.values())

    def scale_of(self, key: str) -> str | None:
        """The name of the scales of an FP8 tensor; None for any other.

        Raises CheckpointError for FP8 whose scales are missing where the config says it has some.
        """
        from graftline.models.block_scales import FP8, SCALE

        if self.block is None or self.stored[key].dtype not in FP8:
            return None
        if key + SCALE not in self.stored:
            raise CheckpointError(
                f"checkpoint: FP8 tensor '{key}' has no '{key}{SCALE}', without which its values "
                "are not known; download the checkpoint again"
            )
        return key + SCALE

    def tensor(
        self, key: str, name: str, shape: tuple[int, ...], dtype: ir.DataType
    ) -> ir.TensorProtocol:
        """The tensor `key` as a value of `shape` and `dtype` named `name`; nothing is read yet.

        Equal dtypes point into the file; others are cast on first use. Raises CheckpointError when
        the tensor is not there or has another shape.
        """
        if key not in self.stored:
            raise CheckpointError(
                f"checkpoint: tensor '{key}' is missing; download the checkpoint again"
            )
        found = self.stored[key]
        if found.shape != shape:
            raise CheckpointError(
                f"checkpoint: tensor '{key}' in {found.file.name} is {list(found.shape)} but the "
                f"config asks for {list(shape)}; config.json and weights do not belong together"
            )
        if self.block is not None and (scale := self.scale_of(key)) is not None:
            from graftline.models.block_scales import scaled

            return scaled(found, self.stored[scale], self.block, name, dtype)
        if found.dtype == dtype:
            return found.external(name)
        if not (found.dtype.is_floating_point() and dtype.is_floating_point()):
            raise CheckpointError(
                f"checkpoint: tensor '{key}' in {found.file.name} is {found.dtype.name} but the "
                f"graph needs {dtype.name}; de-quantize the checkpoint first"
            )
        if _holds(dtype, found.dtype):
            return Widened(found.external(found.name), dtype, name)
        return _cast(found, name, dtype)

    def files(self) -> list[Path]:
        """The files that hold tensors, sorted."""
        return sorted({s.file for s in self.stored.values()})

    def states(self) -> dict[Path, FileState]:
        """The files as they were when their headers were read."""
        return {s.file: s.state for s in self.stored.values() if s.state is not None}


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every number of one type of floats is one of the other."""
    return wide == ir.DataType.FLOAT and narrow in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _cast(found: Stored, name: str, dtype: ir.DataType) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.Tensor(found.external(name).numpy().astype(dtype.numpy()), name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(found.shape), name=name)


def read_headers(files: Iterable[Path]) -> WeightSource:
    """Read and check the headers of safetensors files.

    Raises CheckpointError on a file that is truncated, damaged, or holds a tensor of an unknown
    dtype, and on a tensor that two files hold.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        for entry in read_header(file):
            if entry.name in stored:
                raise CheckpointError(
                    f"{file}: tensor '{entry.name}' is also in {stored[entry.name].file.name}; "
                    "the folder mixes two checkpoints, keep one"
                )
            stored[entry.name] = entry
    return WeightSource(stored)


def read_header(file: Path) -> list[Stored]:
    """The tensors of one safetensors file, checked against its size. Raises CheckpointError."""
    real = file.resolve()
    if not real.is_file():
        raise CheckpointError(f"{file}: no such file; download the missing shard")
    state = file_state(real)
    size = real.stat().st_size
    rows, start = _header(file, real, size)
    found = [_stored(file, real, name, row, start) for name, row in rows.items()]
    entries = [replace(entry, state=state) for entry in found]
    end = max((e.offset + e.length for e in entries), default=start)
    if end != size:
        what = "truncated" if end > size else "longer than its header says"
        raise CheckpointError(
            f"{file}: {what} ({size} bytes, header says {end}); download it again"
        )
    return entries


def _header(file: Path, real: Path, size: int) -> tuple[dict[str, Any], int]:
    """The JSON rows of the header and the offset of the first tensor."""
    with real.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise CheckpointError(
                f"{file}: truncated or not a safetensors file "
                f"({size} bytes, header of {length}); download it again"
            )
        text = stream.read(length)
    try:
        rows = json.loads(text)
        rows.pop("__metadata__", None)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged header ({error}); download it again") from error
    return rows, 8 + length


def _stored(file: Path, real: Path, name: str, row: Any, start: int) -> Stored:
    try:
        dtype, shape = DTYPES[row["dtype"]], tuple(int(n) for n in row["shape"])
        first, last = (int(n) for n in row["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: the header row of tensor '{name}' cannot be read ({error!r}); "
            "convert the checkpoint to fp32, fp16 or bf16 safetensors"
        ) from error
    need = math.prod(shape) * dtype.itemsize
    if first < 0 or last - first != need:
        raise CheckpointError(
            f"{file}: tensor '{name}' has {last - first} bytes, its shape needs {need:g}; "
            "download it again"
        )
    return Stored(name, real, dtype, shape, start + first, last - first)


def external_files(model: ir.Model) -> list[Path]:
    """The files the model's initializers point into, sorted: what a bundle can hard-link."""
    found = {
        Path(value.const_value.path).resolve()
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sorted(found)


Lookup = Callable[[str, tuple[int, ...], ir.DataType], ir.TensorProtocol]
"""lookup(initializer name, shape, dtype): the tensor that fills the initializer."""


def fill(model: ir.Model, names: Iterable[str], lookup: Lookup) -> None:
    """Give the named initializers their tensors."""
    for name in names:
        value = model.graph.initializers[name]
        assert value.shape is not None
        assert value.dtype is not None
        shape = tuple(int(n) for n in value.shape)  # type: ignore[arg-type]
        value.const_value = lookup(name, shape, value.dtype)
