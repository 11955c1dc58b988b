"""A file of weights: tensors one after another, every content once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graftline.tensors import Stacked, Widened, origin, unmapped

ALIGNMENT = 64
WORTH_A_LINK = 1 << 20
"""Tensors of fewer bytes are written again in place of linking a file of the bundle around."""


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor lie."""

    file: Path
    offset: int
    length: int


@dataclass
class WeightFile:
    """Tensors written one after another, each made only when its turn comes, and none twice.

    What one of the files `known` holds is not written again; where that file lies outside `folder`
    it is linked in beside this one. `widens`: the graphs that point here read what the checkpoint
    has in bf16 or fp16 through a Cast.
    """

    folder: Path
    name: str
    need: Callable[[int], None]
    known: Sequence[WeightFile] = ()
    widens: bool = False
    places: dict[Hashable, Place] = field(default_factory=dict[Hashable, Place])
    _kept: list[ir.TensorProtocol] = field(default_factory=list[ir.TensorProtocol])
    _end: int = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name

    def find(self, tensor: ir.TensorProtocol) -> Place | None:
        """Where a tensor lies that was written already, as far as can be told without reading it.
        """
        return self._known(origin(tensor))

    def add(self, tensor: ir.TensorProtocol) -> Place:
        """Append a tensor, or return where its bytes lie already."""
        if (place := self.find(tensor)) is None:
            data = _bytes(tensor)
            content = hashlib.sha256(data).digest()
            place = self._known(content) or self._append(data)
            self.places[content] = place
        self._note(tensor, place)
        return place

    def forget(self) -> None:
        """Let go of the tensors that were written; their contents are remembered."""
        for tensor in self._kept:
            self.places.pop(origin(tensor), None)
        self._kept.clear()

    def _note(self, tensor: ir.TensorProtocol, place: Place) -> None:
        """Remember where a tensor lies, and the tensors that it is stacked of."""
        self.places[origin(tensor)] = place
        if not isinstance(tensor, ir.ExternalTensor | Widened):
            self._kept.append(tensor)  # its id stays its own
        if isinstance(tensor, Stacked):
            start = place.offset
            for part in tensor.parts:
                self._note(part, Place(place.file, start, part.nbytes))
                start += part.nbytes

    def _known(self, key: Hashable) -> Place | None:
        for file in (self, *self.known):
            if (place := file.places.get(key)) is not None:
                return self._entered(place)
        return None

    def _entered(self, place: Place) -> Place | None:
        """The place within this file's folder; None where its file is not or cannot be linked in.
        """
        if place.file.is_relative_to(self.folder):
            return place
        if place.length < WORTH_A_LINK:
            return None
        beside = self.path.with_name(f"target-{place.file.name}")
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            if not beside.exists():
                os.link(place.file, beside)
        except OSError:
            return None  # a disk without links: the bytes are written again
        return Place(beside, place.offset, place.length)

    def _append(self, data: memoryview) -> Place:
        self.need(len(data))
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self._end else "wb") as file:
            file.seek(start)
            file.write(data)
        self._end = start + len(data)
        return Place(self.path, start, len(data))


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(unmapped(tensor), dtype=tensor.dtype)
    if tensor.dtype.itemsize < 1:  # two numbers to a byte
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
