"""Which slots each new row may see, built in-graph from what an attention's mask means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.formula import Formula, copy_formula, formula_of
from graftline.passes.graph.meaning import label

MASK_KEY = "graftline.mask"
HELD_MASK = "held"
"""The kind of a mask, whatever it was, that also hides slots which hold nothing."""
LATER = "graftline.sees_later"
"""In an attention node: rows of a step may see those behind them."""


def meaning(node: ir.Node) -> Mapping[str, Any]:
    """What the mask of an Attention node means: causal, window (size), alibi (slopes) or
    held."""
    return json.loads(node.metadata_props.get(MASK_KEY, '{"kind": "causal"}'))


def combined(
    emit: Emit, visible: ir.Value, formula: Formula, query: ir.Value, key: ir.Value
) -> ir.Value:
    """What is visible and, of that, what a formula says of the positions: bool, or a float bias."""
    values = copy_formula(formula, emit, query, key)
    if formula.at(np.zeros(1), np.zeros(1)).dtype == np.bool_:
        return emit.op("And", [visible, values], f"mask.formula.{formula.text()}")
    hidden = emit.const("minus_infinity", -np.inf, np.float32)
    return emit.op("Where", [visible, values, hidden], f"mask.formula.{formula.text()}")


def shift_biases(graph: ir.Graph, nodes: Iterable[ir.Node], by: str) -> None:
    """Subtract each row's largest bias from the additive masks of attentions, in fp32, before they
    are rounded to a lower precision.

    softmax(x + b) = softmax(x + b - max b): the biases near the largest, which decide, become small
    and keep their digits; ALiBi over absolute positions would lose them.
    """
    shifted: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is None or mask.dtype != ir.DataType.FLOAT:
            continue
        if mask not in shifted:
            emit = Emit(graph, by, node, block="shared")
            last = emit.const("axes.-1", [-1], np.int64)
            made = emit.op("Sub", [mask, emit.op("ReduceMax", [mask, last], keepdims=1)])
            made.shape, made.type = mask.shape, mask.type
            shifted[mask] = made
        node.replace_input_with(3, shifted[mask])


def _formula_in(node: ir.Node) -> Formula:
    """The formula of an attention's mask, as `combined` wrote it."""
    mask = node.inputs[3].producer() if node.inputs[3] is not None else None
    root = mask.inputs[1] if mask is not None and mask.op_type in ("And", "Where") else None
    if root is None:
        raise NotApplicable("the mask of an attention is no longer a formula", [label(node)])
    return formula_of(root)


@dataclass
class SlotMasks:
    """Builds, once per meaning, the mask over S cache slots for N rows at `write_index`.

    `tree` is the port `mask` [B, 1, N, S] bool, or None for a causal chain. Slot s of the past
    holds position s; slot write_index + n holds the position of row n, which in a tree is its
    depth.
    """

    emit: Emit
    tokens: ir.Value
    positions: ir.Value
    write_index: ir.Value
    cache: ir.Value
    """Any cache [B, K, S, D], for its number of slots."""
    tree: ir.Value | None = None
    made: dict[str, ir.Value] = field(default_factory=dict)

    def of(self, node: ir.Node) -> ir.Value:
        """The mask value for one attention: bool, or float for an additive bias."""
        says = meaning(node)
        key = json.dumps(says, sort_keys=True)
        if key not in self.made:
            self.made[key] = self._build(says, node)
        return self.made[key]

    def _build(self, says: Mapping[str, Any], node: ir.Node) -> ir.Value:
        if says["kind"] == "causal":
            return self.visible()
        if says["kind"] == "window":
            return self._window(int(says["size"]))
        if says["kind"] == "alibi":
            return self._alibi([float(s) for s in says["slopes"]])
        rows = self._row_positions()
        formula = _formula_in(node)
        return combined(self.emit, self.visible(), formula, rows, self._key_positions())

    def _once(self, key: str, build: Any) -> ir.Value:
        if key not in self.made:
            self.made[key] = build()
        return self.made[key]

    def visible(self) -> ir.Value:
        """[B, 1, N, S] bool."""
        return self.tree if self.tree is not None else self._once("visible", self._causal)

    def _causal(self) -> ir.Value:
        e = self.emit
        rows = e.op("Unsqueeze", [self._row_slots(), e.const("axes.1_3", [1, 3], np.int64)])
        return e.op("LessOrEqual", [self._slots(), rows], "mask.causal")

    def _slots(self) -> ir.Value:
        """[S] int64: 0 .. S-1."""

        def build() -> ir.Value:
            e = self.emit
            size = e.op("Shape", [self.cache], start=2, end=3)
            count = e.op("Squeeze", [size, e.const("axes.0", [0], np.int64)])
            zero, one = e.const("zero", 0, np.int64), e.const("one", 1, np.int64)
            return e.op("Range", [zero, count, one], "slots")

        return self._once("slots", build)

    def _row_slots(self) -> ir.Value:
        """[B, N] int64: the slot each new row is written to."""

        def build() -> ir.Value:
            e = self.emit
            size = e.op("Shape", [self.tokens], start=1, end=2)
            count = e.op("Squeeze", [size, e.const("axes.0", [0], np.int64)])
            zero, one = e.const("zero", 0, np.int64), e.const("one", 1, np.int64)
            rows = e.op("Range", [zero, count, one])
            start = e.op("Unsqueeze", [self.write_index, e.const("axes.1", [1], np.int64)])
            return e.op("Add", [start, rows], "row_slots")

        return self._once("row_slots", build)

    def _key_positions(self) -> ir.Value:
        """[B, 1, 1, S] int64: the position held by each slot."""

        def build() -> ir.Value:
            e = self.emit
            size = e.op("Shape", [self.cache], start=2, end=3)
            batch = e.op("Shape", [self.tokens], start=0, end=1)
            shape = e.op("Concat", [batch, size], axis=0)
            past = e.op("Expand", [self._slots(), shape])
            held = e.op("ScatterElements", [past, self._row_slots(), self.positions], axis=1)
            return e.op("Unsqueeze", [held, e.const("axes.1_2", [1, 2], np.int64)], "key_positions")

        return self._once("key_positions", build)

    def _row_positions(self) -> ir.Value:
        """[B, 1, N, 1] int64."""
        e = self.emit
        return e.op("Unsqueeze", [self.positions, e.const("axes.1_3", [1, 3], np.int64)])

    def _window(self, size: int) -> ir.Value:
        e = self.emit
        rows = self._row_positions()
        ago = e.op("Sub", [rows, self._key_positions()])
        near = e.op("Less", [ago, e.const(f"window.{size}", size, np.int64)])
        return e.op("And", [near, self.visible()], f"mask.window.{size}")

    def _alibi(self, slopes: list[float]) -> ir.Value:
        e = self.emit
        distance = e.op("Cast", [self._key_positions()], to=ir.DataType.FLOAT)
        steep = e.const("alibi.slopes", np.asarray(slopes, np.float32).reshape(1, -1, 1, 1))
        bias = e.op("Mul", [steep, distance])
        hidden = e.const("minus_infinity", -np.inf, np.float32)
        return e.op("Where", [self.visible(), bias, hidden], "mask.alibi")
