"""A graph that is written into another keeps what it computes, whatever the two call things."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.evaluate import run
from graftline.passes.graph.splice import splice

HOST = """
<ir_version: 10, opset_import: ["" : 20]> g (float[2] w) => (float[2] c, float[2] u)
<float[2] v = {3, 3}> { c = Neg(w)  u = Neg(v) }
"""
PART = """
<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y)
<float[2] c = {1, 2}, float[2] w = {3, 4}, float[2] v = {5, 6}> {
    a = Add(x, c)  b = Add(a, w)  y = Add(b, v)
}
"""


def test_weights_named_like_values_of_the_graph_are_not_taken_for_them() -> None:
    host, part = ir.from_onnx_text(HOST), ir.from_onnx_text(PART)
    (x,) = [v for v in host.graph.outputs if v.name == "c"]
    made = splice(host.graph, part, {"x": x}, "part")
    host.graph.outputs.append(made["y"])
    got = run(host, {"w": np.array([10, 20], np.float32)})
    np.testing.assert_array_equal(got["part.y"], [-1, -8])
    np.testing.assert_array_equal(got["u"], [-3, -3])
