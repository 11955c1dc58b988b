"""Shapes of all values at sizes that are numbers, by the inference of each operator's schema."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.passes.graph.meaning import World
from graftline.passes.graph.shapes.shapes import Measure

WIDTH = 1 << 14


def never() -> ir.TensorProtocol:
    raise AssertionError("a weight was read")


def shape_of(text: str) -> tuple[int, ...] | None:
    """The shape of `out`; x [2, 5, WIDTH] are rows of a table that nobody may read."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
        "g (int64[B, N] tokens, float[W, W] table) => (out)"
        "<int64 one = {1}, int64[1] last = {-1}, int64[1] three = {3}, int64[2] thirds = {-1, 3},"
        "int64[3] split = {0, -1, 64}, float[7] seven = {1, 2, 3, 4, 5, 6, 7}>"
        "{ x = Gather(table, tokens) " + text + " }"
    )
    graph = model.graph
    tokens, table = graph.inputs
    shape = ir.Shape((WIDTH, WIDTH))
    table.const_value = ir.LazyTensor(never, dtype=ir.DataType.FLOAT, shape=shape, name="table")
    measure = Measure(graph, World({tokens: np.zeros((2, 5), np.int64)}))
    return measure.of(graph.outputs[0])


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("out = Mul(x, x)", (2, 5, WIDTH)),
        ("out = Reshape(x, split)", (2, WIDTH * 5 // 64, 64)),
        ("n = Shape(x) out = Reshape(x, n)", (2, 5, WIDTH)),
        ("n = Shape<start=1, end=2>(x) m = Concat<axis=0>(n, three) out = ConstantOfShape(m)",
         (5, 3)),
        ("n = Shape<start=2>(x) m = Squeeze(n) zero = Sub(one, one) out = Range(zero, m, one)",
         (WIDTH,)),
        ("values, out = TopK(x, three)", (2, 5, 3)),
        ("out = ReduceMean(x, last)", (2, 5, 1)),
        ("out = Einsum<equation=\"bnd,bmd->bnm\">(x, x)", (2, 5, 5)),
        ("out = com.microsoft.QuickGelu(x)", (2, 5, WIDTH)),
        ("out = com.microsoft.MatMulNBits<K=16384, N=12, bits=4, block_size=32>(x, last, last)",
         (2, 5, 12)),
        ("a = ArgMax(x) out = NonZero(a)", None),
        ("out = com.microsoft.Mystery(x)", None),
    ],
)  # fmt: skip
def test_shapes_are_told_without_reading_weights(text: str, shape: tuple[int, ...] | None) -> None:
    assert shape_of(text) == shape


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("out = Add(x, seven)", r"\(2, 5, 16384\) and \(7,\) do not fit.*fixed sizes.*Add"),
        ("out = Reshape(x, thirds)", r"do not fit.*fixed sizes.*Reshape"),
        ("out = ReduceMean<axes=[1]>(x)", r"Unrecognized attribute: axes.*ReduceMean"),
    ],
)
def test_operands_that_do_not_fit_are_refused_by_node(text: str, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        shape_of(text)
