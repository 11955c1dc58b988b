"""Operators that TensorRT lacks are written out in those that it has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.operators import call
from graftline.passes.lower.tensorrt.loop import unroll
from graftline.passes.lower.tensorrt.operators import inline_operators
from graftline.plugins import PLUGINS


@pytest.mark.parametrize("rows", [1, 5])
def test_random_numbers_are_the_same_without_bitwise_operators(rows: int) -> None:
    plugin = PLUGINS["Uniforms"]
    model = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["" : 24]> u (int64[B] seed, int64[B] step)'
        f" => (float[B,2,{rows}] uniforms) {{ uniforms = Identity(seed) }}"
    )
    graph = model.graph
    old = graph[0]
    (made,) = call(model, Emit(graph, "t"), plugin, graph.inputs, rows=rows)
    made.name, old.outputs[0].name = "uniforms", "old"
    graph.outputs[0] = made
    graph.remove(old)
    inline_operators(model, "t")
    assert "BitwiseXor" not in {n.op_type for n in graph}
    seed, step = np.asarray([7, 2**40 + 3, 0]), np.asarray([0, 2**31, 2**32 - 1])
    got = run(model, {"seed": seed, "step": step})["uniforms"]
    np.testing.assert_array_equal(got, plugin.reference(seed, step, rows=rows)[0])


LOOP = """
<ir_version: 11, opset_import: ["" : 24]>
powers (int64[B] x, bool go, int64 trips) => (int64[B] y)
{
  count = Constant <value_int = 3> ()
  y = Loop (%s, go, x) <body = round (int64 r, bool c, int64[B] a) => (bool d, int64[B] b)
  {
    d = Identity (c)
    double = Add (a, a)
    b = Add (double, r)
  }>
}
"""


def test_a_loop_is_written_out() -> None:
    model = ir.from_onnx_text(LOOP % "count")
    x = np.asarray([1, 5])
    feed = {"x": x, "go": np.asarray(True), "trips": np.asarray(3)}
    was = run(model, feed)["y"]
    unroll(model.graph, "t")
    assert [n.op_type for n in model.graph][1:] == ["Identity", "Add", "Add"] * 3
    np.testing.assert_array_equal(run(model, feed)["y"], was)
    assert was.tolist() == [12, 44], "8 x + 0 * 4 + 1 * 2 + 2"


def test_a_loop_of_unknown_length_is_refused() -> None:
    with pytest.raises(NotApplicable, match="a constant number of rounds"):
        unroll(ir.from_onnx_text(LOOP % "trips").graph, "t")
