"""graftline's own operators for TensorRT: kept as plugins, or put into standard operators."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.passes.grafts.masks import meaning
from graftline.passes.graph.emit import Emit, drop_unused, take_place
from graftline.passes.graph.operators import call, inline
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.lower.tensorrt.attention import scale_of
from graftline.passes.lower.tensorrt.commit import NEXT
from graftline.passes.lower.tensorrt.importable import key_and_value_size
from graftline.passes.lower.tensorrt.loop import unroll
from graftline.plugins.tree_attention import TREE_ATTENTION

WORD = 32
"""Bits of the numbers that Uniforms mixes, which it holds in int64."""


def inline_operators(model: ir.Model, by: str) -> None:
    """Every operator as standard ones, for a library without plugins."""
    common.RemoveUnusedFunctionsPass()(model)
    inline(model, by)
    unroll(model.graph, by)
    bits = BitwiseXor(model.graph, by)
    for node in [n for n in model.graph if n.op_type == "BitwiseXor"]:
        bits.replace(node)


@dataclass
class BitwiseXor:
    """XOR of words in arithmetic: TensorRT has none. Of each bit, the sum of both modulo two."""

    graph: ir.Graph
    by: str
    spread: dict[ir.Value, ir.Value] = field(default_factory=dict[ir.Value, ir.Value])

    def replace(self, node: ir.Node) -> None:
        """Put the arithmetic in the place of a BitwiseXor of numbers in [0, 2^32)."""
        one, two = (self._bits(v, node) for v in node.inputs)
        e = Emit(self.graph, self.by, node)
        bits = e.op("Mod", [e.op("Add", [one, two]), e.const("bit.two", 2, np.int64)])
        values = e.op("Mul", [bits, self._powers(e)])
        axis = e.const("axes.-1", [-1], np.int64)
        made = e.op("ReduceSum", [values, axis], keepdims=0)
        self.spread[made] = bits
        take_place(node, [made])

    def _bits(self, value: ir.Value | None, at: ir.Node) -> ir.Value:
        """[..., 32]: the bits of every number, lowest first."""
        assert value is not None
        if value not in self.spread:
            e = Emit(self.graph, self.by, at)
            column = e.op("Unsqueeze", [value, e.const("axes.-1", [-1], np.int64)])
            shifted = e.op("Div", [column, self._powers(e)])
            self.spread[value] = e.op("Mod", [shifted, e.const("bit.two", 2, np.int64)])
        return self.spread[value]

    def _powers(self, e: Emit) -> ir.Value:
        return e.const("bit.values", 1 << np.arange(WORD, dtype=np.int64), np.int64)


def keep_operators(model: ir.Model, by: str) -> bool:
    """Operators as plugins, TreeAttention among them; whether there are any.

    Their functions stay in the model, so that the laws can compute it; the builder drops them.
    """
    _tree_attentions(model, by)
    common.RemoveUnusedFunctionsPass()(model)
    return bool(model.functions)


def _tree_attentions(model: ir.Model, by: str) -> None:
    """TreeAttention in the place of Attention where the graph knows the tree's parents: no mask of
    N x S is made or read. Attentions it has no meaning for (ALiBi, formulas of positions, values
    of another size than keys) stay."""
    graph = model.graph
    parents = input_of(model, "parents")
    lengths = output_of(model, NEXT)
    if parents is None or lengths is None:
        return
    for node in [n for n in graph if n.op_type == "Attention"]:
        says, (keys, values) = meaning(node), key_and_value_size(node)
        scale = scale_of(node)
        if says["kind"] in ("alibi", "formula") or keys != values or scale is None:
            continue
        read = [v for v in node.inputs[:3] if v is not None]
        (made,) = call(
            model,
            Emit(graph, by, node),
            TREE_ATTENTION,
            [*read, parents, lengths],
            scale=scale,
            softcap=node.attributes.get_float("softcap", 0.0) or 0.0,
            window=int(says.get("size", 0)),
        )
        take_place(node, [made])
    drop_unused(model)
