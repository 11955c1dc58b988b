"""Types and shapes of whole graphs are those that onnx_ir's own pass copies."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from graftline.passes.graph.shapes.whole import infer
from tests.passes.tiny_hosts import ALL, grafted, host

BRANCHES = """<ir_version: 10, opset_import: ["" : 22]>
g (bool c, float[B, 4] x, float[4, 3] w) => (float[B, K] y) <int64[2] s = {-1, 2}> {
  m = MatMul(x, w)
  n = Reshape(m, s)
  y = If(c) <then_branch = t () => (a) {k = Relu(n) a = Neg(k)},
             else_branch = e () => (a) {k = Cast<to = 1>(n) a = Exp(k)}>
}"""


def known(model: ir.Model) -> list[tuple[str | None, str, str]]:
    """Name, type and shape of every value, those of branches too."""
    made = (value for graph in model.graphs() for node in graph for value in node.outputs)
    return [(value.name, str(value.type), str(value.shape)) for value in made]


def branches() -> ir.Model:
    """Two branches whose values have the same names, behind a weight that is not loaded yet."""
    model = ir.from_onnx_text(BRANCHES)
    weight = model.graph.inputs.pop()
    model.graph.initializers.add(weight)
    return model


def of_grafts() -> ir.Model:
    return grafted(ALL)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [host, of_grafts, branches])
def test_they_are_onnx_irs(make: Callable[[], ir.Model], strict: bool) -> None:
    ours, theirs = make(), make()
    for model in (ours, theirs):
        for value in (v for graph in model.graphs() for node in graph for v in node.outputs):
            if not value.is_graph_output():
                value.shape = value.type = None
    assert infer(ours, strict=strict) == ""
    common.ShapeInferencePass(check_type=strict, strict_mode=strict, data_prop=strict)(theirs)
    assert known(ours) == known(theirs)
    told = [kind != "None" for _, kind, _ in known(ours)]
    assert sum(told) > len(told) / 2, "but behind operators of ONNX Runtime alone"


def test_what_contradicts_is_told_and_nothing_changes() -> None:
    model = branches()
    product = next(iter(model.graph)).outputs[0]
    product.dtype = ir.DataType.INT64
    before = known(model)
    assert "MatMul" in infer(model, strict=True)
    assert known(model) == before
