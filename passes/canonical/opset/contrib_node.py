"""One node of ONNX Runtime's domain: its operands, what they are held to, and the writing of the
standard nodes that it becomes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical.shapes import SIZES
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import World, label


@dataclass
class ContribNode:
    """One node of the domain, and the writing of its parts in front of it."""

    graph: ir.Graph
    node: ir.Node
    tokens: ir.Value
    positions: ir.Value

    def __post_init__(self) -> None:
        self.emit = Emit(self.graph, "canonicalize", at=self.node)
        self.type = next(v.type for v in self.node.inputs if v is not None)
        first = self.node.inputs[0]
        if first is not None and first.type is not None:
            self.type = first.type

    def input(self, index: int) -> ir.Value | None:
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else None

    def need(self, index: int) -> ir.Value:
        value = self.input(index)
        if value is None:
            raise NotApplicable(f"input {index} is missing", [label(self.node)])
        return value

    def int(self, name: str, default: int = 0) -> int:
        return int(self.node.attributes.get_int(name, default) or 0)

    def float(self, name: str, default: float = 0.0) -> float:
        return float(self.node.attributes.get_float(name, default) or 0.0)

    def refuse(self, what: str) -> NotApplicable:
        return NotApplicable(f"{self.node.op_type} {what}", [label(self.node)])

    def check_attributes(self, known: Collection[str]) -> None:
        """Refuse an attribute that is not among the `known` ones, unless it says nothing."""
        for name, attribute in self.node.attributes.items():
            idle = attribute.value in (0, 0.0, -1, "NONE", "")
            if name not in known and not idle:
                raise self.refuse(f"has the attribute {name}, which is not understood")

    def without(self, first: int) -> None:
        """Refuse inputs from a place on."""
        if any(v is not None for v in self.node.inputs[first:]):
            raise self.refuse(f"takes an input beyond its first {first}, which is not understood")

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        made = self.emit.op(op_type, inputs, **attributes)
        made.type = self.type
        return made

    def ints(self, *values: int) -> ir.Value:
        name = "shape." + "_".join(map(str, values))
        return self.emit.const(name, list(values), np.int64)

    def done(self, *outputs: ir.Value) -> None:
        """Put values in place of the node's outputs."""
        for old, new in zip(self.node.outputs, outputs, strict=False):
            new.shape = old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        rest = self.node.outputs[len(outputs) :]
        if any(v.uses() or v.is_graph_output() for v in rest):
            raise self.refuse("has a second output that is used, which is not supported")
        self.graph.remove(self.node, safe=True)

    def values(self, value: ir.Value) -> list[tuple[Array, int, int]]:
        """What weight-free value an input has at several (batch, length)."""
        out: list[tuple[Array, int, int]] = []
        for batch, length in SIZES:
            ids = np.zeros((batch, length), np.int64)
            at = np.broadcast_to(np.arange(length, dtype=np.int64), ids.shape)
            world = World({self.tokens: ids, self.positions: at})
            out.append((world.value(value), batch, length))
        return out

    def check_number(self, index: int, less: int, what: str) -> None:
        """Hold an input to N - `less` at every size."""
        for found, _, length in self.values(self.need(index)):
            if (found != length - less).any():
                raise self.refuse(
                    f"takes {found.reshape(-1)[0]} as {what} of {length} tokens without padding"
                )

    def check_open(self, index: int) -> None:
        """Hold a padding mask to hiding nothing: ones, or the whole length."""
        value = self.input(index)
        if value is None:
            return
        for found, _, length in self.values(value):
            whole = (found == length).all() if found.ndim == 1 else (found == 1).all()
            if not whole:
                raise self.refuse("hides keys although no token is padding")

    def split_heads(self, x: ir.Value, heads: int) -> ir.Value:
        """[B, N, heads*D] -> [B, heads, N, D]."""
        rows = self.op("Reshape", [x, self.ints(0, 0, heads, -1)])
        return self.op("Transpose", [rows], perm=[0, 2, 1, 3])

    def merge_heads(self, x: ir.Value) -> ir.Value:
        rows = self.op("Transpose", [x], perm=[0, 2, 1, 3])
        return self.op("Reshape", [rows, self.ints(0, 0, -1)])

    def parts(self, x: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value]:
        node = self.emit.node("Split", [x, self.ints(*sizes)], [""] * len(sizes), axis=axis)
        for made in node.outputs:
            made.type = self.type
        return list(node.outputs)

    def rows(self) -> ir.Value:
        """0 .. N-1, [N]."""
        size = self.emit.op("Squeeze", [self.emit.op("Shape", [self.tokens], start=1, end=2)])
        zero = self.emit.const("number.0", 0, np.int64)
        made = self.emit.op("Range", [zero, size, self.emit.const("number.1", 1, np.int64)])
        made.type = ir.TensorType(ir.DataType.INT64)
        return made

    def counted(self, start: ir.Value | None = None) -> ir.Value:
        """Positions [B, N] that count up from `start` [1], or from 0."""
        rows = self.rows() if start is None else self.emit.op("Add", [self.rows(), start])
        shape = self.emit.op("Shape", [self.tokens])
        made = self.emit.op("Expand", [rows, shape])
        made.type = ir.TensorType(ir.DataType.INT64)
        return made

    def rotate(self, x: ir.Value, tables: tuple[int, int], at: ir.Value, name: str) -> ir.Value:
        """A rotary embedding of heads [B, heads, N, D] by two inputs of the node."""
        return self.op(
            "RotaryEmbedding", [x, self.need(tables[0]), self.need(tables[1]), at],
            interleaved=self.int(name), rotary_embedding_dim=self.int("rotary_embedding_dim"),
        )  # fmt: skip

    def attend(
        self, heads: Sequence[ir.Value], mask: ir.Value | None, causal: bool, scale: float
    ) -> ir.Value:
        return self.op(
            "Attention", [*heads, *([mask] if mask is not None else [])],
            is_causal=int(causal), scale=scale or None, softcap=self.float("softcap") or None,
        )  # fmt: skip
