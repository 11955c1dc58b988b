"""Canonical masks, from what they mean: written once each, over `positions`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.passes.canonical.mask.kinds import Mask
from graftline.passes.grafts.masks import combined
from graftline.passes.graph.emit import Emit


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
            self.made[key] = self._build(emit, mask)
        return self.made[key]

    def is_causal(self, mask: Mask) -> int | None:
        """The attribute of Attention that says causal, absent where a mask input says more."""
        return 1 if mask.kind == "causal" else None

    def _build(self, emit: Emit, mask: Mask) -> ir.Value:
        if mask.formula is not None:
            query, key = self._sides(emit)
            past = emit.op("LessOrEqual", [key, query])
            return combined(emit, past, mask.formula, query, key)
        if mask.kind == "window":
            return self._window(emit, mask.size)
        return self._alibi(emit, mask.slopes)

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
