"""A draft head as it was published, under one naming for all files of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.head_notes import NORM, TapReading
from graftline.tensors import Widened, numbers

CHUNK = 1 << 22
"""Numbers looked at in one go."""


WORDS = {
    "hidden": "hidden size", "vocabulary": "vocabulary", "layers": "layers",
    "queries": "heads x head size", "keys": "KV heads x head size",
}  # fmt: skip
"""What the sizes of a host are called in errors."""


@dataclass(frozen=True)
class Tap:
    """A hidden state [B, N, H] of the host that a head reads: the output of decoder layer `layer`.

    `layer` is 0-based; negative counts from the end (-1: the last). With `middle` it counts from
    layer n // 2 of n on (-1: the one before). `normed`: after the host's final norm, last layer.
    """

    layer: int
    normed: bool = False
    middle: bool = False

    def index(self, layers: int) -> int:
        """The 0-based layer in a host of `layers`; outside 0..layers-1 where it has none such."""
        if self.middle:
            return layers // 2 + self.layer
        return self.layer + layers if self.layer < 0 else self.layer

    def __str__(self) -> str:
        if self.normed:
            return "the final norm's output"
        if self.middle:
            return f"n/2{self.layer:+d}"
        return f"n{self.layer}" if self.layer < 0 else str(self.layer)


FINAL = Tap(-1, normed=True)
"""What most heads read."""


@dataclass(frozen=True)
class HostSize:
    """A number of a head's files that must be `times` a size of its host, and where it stands."""

    where: str
    number: int
    of: Literal["hidden", "vocabulary", "layers", "queries", "keys"]
    times: int = 1

    def needed(self, host: DecoderFacts) -> int:
        """The number that fits `host`; 0 where the host's graph does not say."""
        if self.of in ("queries", "keys"):
            heads = host.heads if self.of == "queries" else host.kv_heads
            return self.times * heads * host.head_size
        return self.times * int(getattr(host, self.of))


@dataclass(frozen=True)
class Head:
    """A draft head: its settings, the taps it reads, and its tensors, unread.

    `settings` is the family's own dataclass with every number and switch. `tensors` are fp32
    (integers as they are), named by us. `sizes` is what the host must have. `decided` says in one
    line each what was decided about the files, and why.
    """

    family: str
    source: Path
    settings: Any
    taps: tuple[Tap, ...]
    tensors: Mapping[str, ir.TensorProtocol] = field(repr=False)
    sizes: tuple[HostSize, ...] = ()
    decided: tuple[str, ...] = ()

    def reading(self, layers: int, width: int, epsilon: float = 0.0) -> TapReading:
        """What it reads of a host of so many layers: features of `width` numbers, made by norms of
        that epsilon where it has any."""
        read = (NORM if tap.normed else tap.index(layers) for tap in self.taps)
        return TapReading(tuple(read), width, epsilon)

    def check(self, host: DecoderFacts) -> None:
        """Raise CheckpointError unless the head belongs to `host` and all its numbers are finite.

        Sizes and taps come first; then every tensor is read once, a few million numbers at a time.
        """
        for size in self.sizes:
            self._fits(size, host)
        for tap in self.taps:
            if not 0 <= tap.index(host.layers) < host.layers:
                raise CheckpointError(
                    f"{self.source}: the head reads the output of layer {tap}, but "
                    f"{host.source or 'the host'} has {host.layers} layers; it was made for "
                    "another model, or give the layers it reads"
                )
            if tap.normed and tap.index(host.layers) != host.layers - 1:
                raise CheckpointError(
                    f"{self.source}: a tap behind the final norm was given for layer {tap.layer}, "
                    "which is not the last; give the last, or without the norm"
                )
        for name, tensor in self.tensors.items():
            self._finite(name, tensor)

    def _fits(self, size: HostSize, host: DecoderFacts) -> None:
        needed = size.needed(host)
        if needed and size.number != needed:
            times = f"{size.times} x " if size.times > 1 else ""
            raise CheckpointError(
                f"{self.source}: {size.where} is {size.number}, but {host.source or 'the host'} "
                f"needs {needed} ({times}{WORDS[size.of]}); the head was made for another model"
            )

    def _finite(self, name: str, tensor: ir.TensorProtocol) -> None:
        if not tensor.dtype.is_floating_point():
            return
        stored = tensor.narrow if isinstance(tensor, Widened) else tensor
        values = numbers(stored).reshape(-1)
        for start in range(0, values.size, CHUNK):
            if not np.isfinite(values[start : start + CHUNK].astype(np.float32)).all():
                raise CheckpointError(
                    f"{self.source}: tensor '{name}' holds numbers that are not finite (NaN or "
                    "infinite); download the head again"
                )
