"""Saving a graph beside its weights: those of a checkpoint by reference, the rest in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graftline.errors import BundleError
from graftline.folder import inside
from graftline.tensors import static_shape

ALIGNMENT = 64
INLINE = 1024
"""Tensors of fewer bytes stay inside the graph file."""


@dataclass
class WeightFile:
    """Tensors written one after another, each made only when its turn comes."""

    folder: Path
    name: str
    need: Callable[[int], None]
    written: dict[str, ir.ExternalTensor] = field(default_factory=dict[str, ir.ExternalTensor])
    _end: int = 0

    def add(self, key: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Append a tensor, or return the one already written under `key`."""
        if key in self.written:
            return self.written[key]
        data = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
        self.need(len(data))
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        with (self.folder / self.name).open("r+b" if self._end else "wb") as file:
            file.seek(start)
            file.write(data)
        self._end = start + len(data)
        made = ir.ExternalTensor(
            self.name,
            start,
            len(data),
            tensor.dtype,
            shape=static_shape(tensor),
            name=key,
        )
        self.written[key] = made
        return made


def load_graph(path: Path) -> ir.Model:
    """Read a graph whose weights lie beside it, without reading the weights.

    onnx_ir refuses external data with several hard links, which is what `--weights link` makes; so
    the containment rule is applied here, and the tensors then point at absolute paths.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise what they like on damaged files
        raise BundleError(f"{path}: not an ONNX file that can be read ({error})") from error
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                inside(path.parent, str(tensor.location)),
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=static_shape(tensor),
                name=value.name or "",
            )
    return model


def checkpoint_files(model: ir.Model) -> set[Path]:
    """Files of a checkpoint that initializers of the graph point into."""
    return {_file(t) for t in _external(model)}


def save_graph(model: ir.Model, path: Path, weights: WeightFile, linked: dict[Path, str]) -> None:
    """Write `model` at `path`, in the folder of `weights`.

    Tensors that lie in a file of `linked` (checkpoint file -> its relative path in the folder) keep
    pointing there; every other tensor of size goes to `weights`. The model in memory is left as it
    was.
    """
    kept = {v: v.const_value for v in model.graph.initializers.values()}
    try:
        for value, tensor in kept.items():
            assert tensor is not None
            value.const_value = _placed(tensor, value.name or "", weights, linked)
        try:
            ir.save(model, path)
        except OSError as error:
            raise BundleError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for value, tensor in kept.items():
            value.const_value = tensor


def _placed(
    tensor: ir.TensorProtocol, name: str, weights: WeightFile, linked: dict[Path, str]
) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor) and _file(tensor) in linked:
        return ir.ExternalTensor(
            linked[_file(tensor)],
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=static_shape(tensor),
            name=name,
        )
    if tensor.nbytes < INLINE:
        return tensor if not isinstance(tensor, ir.ExternalTensor) else ir.tensor(tensor.numpy())
    key = name
    if isinstance(tensor, ir.ExternalTensor):
        key = f"{_file(tensor)}:{tensor.offset}"
    return weights.add(key, tensor)


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value


def _file(tensor: ir.ExternalTensor) -> Path:
    return Path(os.path.abspath(tensor.path))
