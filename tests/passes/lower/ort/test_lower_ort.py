"""lower-ort takes the attention that fits its operators, and saves the work that it is for."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from graftline.passes import GRAFTS
from graftline.passes.lower.ort.fusions import skip_norm
from graftline.passes.pipeline.graft import MADE_BY
from tests.passes.tiny_hosts import ALL, HOSTS, grafted


def test_lowering_saves_the_work_it_is_for() -> None:
    canonical, lowered = grafted(ALL.replace(" | lower-ort", "")), grafted(ALL)
    was, now = (
        Counter(n.op_type for n in m.graph if n.metadata_props.get(MADE_BY) != "reduce-logits")
        for m in (canonical, lowered)
    )
    assert now["GroupQueryAttention"] == was["Attention"] == 2
    assert now["SkipSimplifiedLayerNormalization"] == 4
    for gone in ("Attention", "TensorScatter", "RotaryEmbedding", "Transpose", "Reshape"):
        assert now[gone] == 0, gone
    assert len(lowered.graph) < len(canonical.graph)


@pytest.mark.parametrize(("rows", "fused"), [("N", True), ("1", False)])
def test_a_norm_is_fused_with_a_sum_of_as_many_rows_alone(rows: str, fused: bool) -> None:
    """ONNX Runtime's operator adds no row to all, as Add does."""
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 24]>
        g (float[B, N, 8] x, float[B, {rows}, 8] y) => (float[B, N, 8] z)
        <float[8] w = {{1, 1, 1, 1, 1, 1, 1, 1}}>
        {{ s = Add(x, y) z = RMSNormalization(s, w) }}""")
    skip_norm(model.graph, list(model.graph)[1], "lower-ort")
    found = {node.op_type for node in model.graph}
    assert ("SkipSimplifiedLayerNormalization" in found) == fused


def test_heads_that_do_not_fit_keep_their_attention() -> None:
    lowered = grafted(ALL, HOSTS["head-of-4"])
    assert Counter(n.op_type for n in lowered.graph)["Attention"] == 2


@pytest.mark.parametrize("odd", ["index", "axis", "mode"])
def test_caches_that_are_written_elsewhere_keep_their_attention(odd: str) -> None:
    """GroupQueryAttention writes behind the length, in order: another write is not its."""
    model = grafted("anchors | kv-cache | tree-mask")
    scatter = next(n for n in model.graph if n.op_type == "TensorScatter")
    if odd == "index":
        made = ir.node("Identity", [scatter.inputs[2]])
        model.graph.insert_before(scatter, made)
        scatter.replace_input_with(2, made.outputs[0])
    else:
        change = ir.AttrInt64("axis", 3) if odd == "axis" else ir.AttrString("mode", "circular")
        scatter.attributes[odd] = change
    GRAFTS["lower-ort"]().apply(model)
    assert {n.op_type for n in model.graph if "Attention" in n.op_type} == {"Attention"}
