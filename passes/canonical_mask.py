"""What an attention bias means: causal, a window, or linear biases; told by its values.

The bias is evaluated at small sizes. A window larger than those sizes would look causal, so every
integer of the sub-graph that could be one is replaced by a small one to see if the mask follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical_shapes import Measures
from graftline.passes.emit import Emit
from graftline.passes.meaning import World, sizes_of

MASK_KEY = "graftline.mask"
_MASKED = -9e3
_LENGTH = 13
_LARGEST_WINDOW = 1 << 20
_DIRECT = 4096
Bias = Callable[[World], Array]
"""Evaluates the additive bias [B|1, heads|1, N|1, N] of the scores in a world."""


@dataclass(frozen=True)
class Mask:
    """What may be attended to: causal; within `size` positions; biased by `slopes` per head."""

    kind: Literal["causal", "window", "alibi"]
    size: int = 0
    slopes: tuple[float, ...] = ()

    def text(self) -> str:
        """The metadata every Attention node carries."""
        row: dict[str, object] = {"kind": self.kind}
        if self.kind == "window":
            row["size"] = self.size
        if self.kind == "alibi":
            row["slopes"] = list(self.slopes)
        return json.dumps(row)


def read_mask(
    bias: Bias, sources: list[ir.Value], measures: Measures, heads: int, where: str
) -> Mask:
    """Classify a bias whose weight-free sources are `sources`. Raises NotApplicable otherwise."""
    for batch, length in ((2, 5), (1, _LENGTH)):
        found = _at(bias, measures.world(batch, length), batch, length, heads, where)
    numbers, buffers = _constants(sources)
    for length in sorted(n for n in buffers if n > _LENGTH):
        found = _at(bias, measures.world(1, length), 1, length, heads, where)
    if found.kind == "window":
        return found
    for number in sorted(numbers):
        size = _window_of(bias, number, numbers[number], measures, heads, where)
        if size is not None:
            return Mask("window", size)
    return found


def _at(bias: Bias, world: World, batch: int, length: int, heads: int, where: str) -> Mask:
    values = np.broadcast_to(bias(world).astype(np.float64), (batch, heads, length, length))
    return _classify(values, where)


def _classify(values: Array, where: str) -> Mask:
    """The meaning of bias values [B, heads, N, N]."""
    length = values.shape[-1]
    allowed = values > _MASKED
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    if (allowed != allowed[:1, :1]).any():
        raise NotApplicable("the mask differs between rows of the batch or heads", [where])
    seen = allowed[0, 0]
    size = int(seen[-1].sum())
    if not (seen == ((distance >= 0) & (distance < max(size, 1)))).all():
        if seen.all():
            raise NotApplicable(
                "the mask hides nothing: either this is no causal decoder, or a boolean mask is "
                "added to the scores as 0 and 1 (export with a float mask or sdpa attention)",
                [where],
            )
        raise NotApplicable("the mask is neither causal nor a window", [where])
    slopes = _slopes(values, seen, where)
    if size < length:
        if any(slopes):
            raise NotApplicable("a window with position biases is not supported", [where])
        return Mask("window", size)
    return Mask("alibi", slopes=slopes) if any(slopes) else Mask("causal")


def _slopes(values: Array, seen: Array, where: str) -> tuple[float, ...]:
    """Per head, what one key position more adds; softmax ignores what a row has in common."""
    length = values.shape[-1]
    finite = np.where(seen, values, 0.0)
    diagonal = np.arange(length)
    relative = np.where(seen, finite - finite[..., diagonal, diagonal][..., None], 0.0)
    slopes = -relative[0, :, -1, 0] / max(length - 1, 1)
    slopes = np.where(seen[-1, 0], slopes, -relative[0, :, -1, -2])
    steps = np.arange(length)[None, :] - np.arange(length)[:, None]
    expected = np.where(seen, slopes[:, None, None] * steps, 0.0)
    if np.abs(relative - expected).max() > 1e-4 * max(1.0, float(np.abs(relative).max())):
        raise NotApplicable("the attention bias is no linear function of key positions", [where])
    return tuple(float(np.float32(s)) if abs(s) > 1e-7 else 0.0 for s in slopes)


def _constants(sources: list[ir.Value]) -> tuple[dict[int, list[ir.Value]], set[int]]:
    """Whole numbers that could be window sizes, and sizes of square buffers, above the sources."""
    numbers: dict[int, list[ir.Value]] = {}
    buffers, seen, todo = set[int](), set[ir.Value](), list(sources)
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None:
            todo.extend(v for v in node.inputs if v is not None)
            continue
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.size == 1:
            number = float(tensor.numpy().reshape(()))
            fill = tensor.dtype.is_floating_point() and abs(number) >= -_MASKED
            in_range = _LENGTH - 3 < abs(number) <= _LARGEST_WINDOW
            if number.is_integer() and in_range and not fill:
                numbers.setdefault(abs(int(number)), []).append(value)
            continue
        shape = sizes_of(tensor)
        if len(shape) >= 2 and shape[-1] == shape[-2]:
            buffers.add(min(shape[-1], _DIRECT))
    return numbers, buffers


def _window_of(
    bias: Bias, number: int, holders: list[ir.Value], measures: Measures, heads: int, where: str
) -> int | None:
    """The window that `number` sets, or None when the mask does not depend on it."""
    sizes: list[int | None] = []
    try:
        for small in (6, 8):
            world = measures.world(1, _LENGTH)
            for holder in holders:
                tensor = holder.const_value
                if tensor is not None:
                    array = tensor.numpy()
                    world.known[holder] = (np.sign(array) * small).astype(array.dtype)
            found = _at(bias, world, 1, _LENGTH, heads, where)
            sizes.append(found.size if found.kind == "window" else None)
    except NotApplicable:
        return _window_directly(bias, number, measures, heads, where)
    if sizes[0] is None and sizes[1] is None:
        return None
    if sizes[0] is None or sizes[1] is None or sizes[1] - sizes[0] != 2:
        return _window_directly(bias, number, measures, heads, where)
    return number + sizes[0] - 6


def _window_directly(
    bias: Bias, number: int, measures: Measures, heads: int, where: str
) -> int | None:
    if number > _DIRECT:
        raise NotApplicable(f"cannot tell what {number} does to the mask", [where])
    try:
        found = _at(bias, measures.world(1, number + 3), 1, number + 3, heads, where)
    except NotApplicable:
        # a buffer of that many positions: longer inputs cannot be run, so none is hidden by it
        found = _at(bias, measures.world(1, number), 1, number, heads, where)
    return found.size if found.kind == "window" else None


class MaskWriter:
    """Builds each canonical mask once, at the top of the graph, from `positions`."""

    def __init__(self, graph: ir.Graph, positions: ir.Value) -> None:
        self.graph, self.positions = graph, positions
        self.made: dict[str, ir.Value] = {}

    def value(self, mask: Mask) -> ir.Value | None:
        """The mask input of Attention: none for causal, which the node says itself."""
        if mask.kind == "causal":
            return None
        key = mask.text()
        if key not in self.made:
            emit = Emit(self.graph, "canonicalize", at=next(iter(self.graph)))
            self.made[key] = (
                self._window(emit, mask.size)
                if mask.kind == "window"
                else (self._alibi(emit, mask.slopes))
            )
        return self.made[key]

    def is_causal(self, mask: Mask) -> int | None:
        """The attribute of Attention that says causal, absent where a mask input says more."""
        return 1 if mask.kind == "causal" else None

    def _sides(self, emit: Emit) -> tuple[ir.Value, ir.Value]:
        """Positions of queries [B, 1, N, 1] and of keys [B, 1, 1, N]."""
        q = emit.op("Unsqueeze", [self.positions, emit.const("axes.1_3", [1, 3], np.int64)])
        k = emit.op("Unsqueeze", [self.positions, emit.const("axes.1_2", [1, 2], np.int64)])
        return q, k

    def _window(self, emit: Emit, size: int) -> ir.Value:
        q, k = self._sides(emit)
        past = emit.op("LessOrEqual", [k, q])
        ago = emit.op("Sub", [q, k])
        near = emit.op("Less", [ago, emit.const(f"window.{size}", size, np.int64)])
        return emit.op("And", [past, near], f"mask.window.{size}")

    def _alibi(self, emit: Emit, slopes: tuple[float, ...]) -> ir.Value:
        q, k = self._sides(emit)
        steep = np.asarray(slopes, np.float32).reshape(1, -1, 1, 1)
        name = "mask.alibi" + (f".{len(self.made)}" if self.made else "")
        bias = emit.op(
            "Mul", [emit.const(f"{name}.slopes", steep), emit.op("Cast", [k], to=ir.DataType.FLOAT)]
        )
        past = emit.op("LessOrEqual", [k, q])
        lowest = emit.const("minus_infinity", -np.inf, np.float32)
        return emit.op("Where", [past, bias, lowest], name)
