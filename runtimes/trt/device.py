"""What a session asks of a GPU: memory, copies and one engine's runs, in order on one stream.

Every call but `allocate`, `pinned` and `synchronize` only enqueues; host arrays may be read or
changed after `synchronize` alone. An address is a plain integer, as CUDA has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Enqueue = Callable[[], None]


@dataclass(frozen=True)
class Box:
    """Bytes that lie regularly in memory: `depth` slices of `height` runs of `width` bytes.

    Runs begin `pitch` bytes apart, slices `slice_pitch`, which is a multiple of `pitch`.
    """

    width: int
    height: int
    depth: int
    pitch: int
    slice_pitch: int


class Context(Protocol):
    """One execution context of an engine, set to one optimization profile."""

    def bind(self, name: str, address: int, shape: Sequence[int]) -> None:
        """Say where a tensor lies and, of an input, its shape. Raises BackendError."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once all inputs are bound. Raises BackendError where it depends
        on more than their shapes."""
        ...

    def enqueue(self) -> None:
        """Run once. Raises BackendError."""
        ...

    def recordable(self) -> bool:
        """Whether a run as it is bound now can be part of a CUDA graph; asked after a first run."""
        ...


class Device(Protocol):
    """A GPU with one stream, and the engine opened on it."""

    name: str
    """GPU and library, for the key of measured costs."""

    def allocate(self, size: int) -> int:
        """The address of `size` bytes of device memory, all zero. Raises BackendError."""
        ...

    def release(self, address: int) -> None:
        """Give back what `allocate` gave."""
        ...

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory, all zero: the only kind that copies take."""
        ...

    def upload(self, to: int, source: Array) -> None:
        """Copy a contiguous array to the device."""
        ...

    def upload_columns(self, to: int, source: Array, first: int, last: int) -> None:
        """Copy columns [first, last) of a contiguous [rows, columns] array to their places."""
        ...

    def download(self, to: Array, source: int) -> None:
        """Fill a contiguous array from the device."""
        ...

    def move(self, to: int, source: int, box: Box, laid: Box | None = None) -> None:
        """Copy a box within the device; the two do not overlap. `laid`: how it lies where it goes,
        as many bytes (None: as where it comes from)."""
        ...

    def context(self, profile: int, fixed: bool) -> Context:
        """The execution context for the engine's profile of that number, always the same one.

        `fixed`: it runs few shapes and often, so kernels made for them pay.
        """
        ...

    def capture(self, work: Enqueue) -> Enqueue:
        """Record what `work` enqueues, as a CUDA graph; returns what enqueues it again, at once."""
        ...

    def synchronize(self) -> None:
        """Wait until everything is done. Raises BackendError for whatever failed on the way."""
        ...
