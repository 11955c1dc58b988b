"""select-mlp-rows: an MLP computes the rows that do not pass it by, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.passes.laws.gated import ALWAYS, NEVER, with_similarity
from graftline.passes.lower.select_mlp_rows import Gate, SelectMlpRows
from graftline.ports import SKIPPED
from tests.passes.grafts.small_blocks import FEED, ONE_BY_ONE, small
from tests.passes.tiny_hosts import decoder_feed

GATED = "anchors | gate-mlp{similarity=0.5,first=0,last=0}"
SPEC = TinyDecoder(layers=4, hidden=32, mlp=64, vocabulary=64)


def lines(graph: ir.Graph) -> list[str]:
    return [f"{n.op_type}({', '.join(v.name or '' for v in n.inputs if v)})" for n in graph]


def test_before_and_after_a_gated_mlp() -> None:
    """Block 1 is gated and judged, block 2 is gated."""
    model = small(blocks=3)
    Pipeline.parse(f"{GATED} | select-mlp-rows", GRAFTS).run(model, FEED)
    types = [n.op_type for n in model.graph]
    left = ["Not", "Squeeze", "NonZero", "Transpose", "Unsqueeze", "GatherND"]
    mlp = ["RMSNormalization", "MatMul", "Add", "Add"]
    judged = ["Mul", "ReduceSum", "ReduceL2", "ReduceL2", "Mul", "Mul", "GreaterOrEqual"]
    assert types[22:41] == [*left, *mlp, *judged, "ScatterND", "ScatterND"]
    assert types[46:57] == [*left, *mlp, "ScatterND"]
    assert not {"Where", "Or"} & set(types)
    by_name = {v.name: v for n in model.graph for v in n.outputs}
    assert [str(size) for size in by_name["wide1"].shape or ()] == ["1", "left.1", "16"]
    assert [str(size) for size in by_name["m1"].shape or ()] == ["B", "N", "16"]


def lowered(text: str) -> tuple[ir.Model, Feed]:
    """A gated tiny decoder whose MLPs compute rows, and a feed of it: two sequences of three."""
    model = SPEC.build()
    infer_shapes(model)
    pipeline = Pipeline.parse(f"{text} | select-mlp-rows", GRAFTS)
    pipeline.run(model)
    feed = decoder_feed(64, batch=2, rows=3)
    for graft in pipeline.grafts:
        feed = graft.neutral(feed, model)
    return model, feed


def computed(model: ir.Model, feed: Feed, folder: Path) -> list[int]:
    """How many rows each product of gated MLPs had in one call of ONNX Runtime: those whose rows
    are one sequence."""
    options: Any = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {v.name for v in session.get_inputs()}
    session.run(None, {name: array for name, array in feed.items() if name in names})
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = [e["args"] for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    products = [a for a in runs if a["op_name"] in ("FusedMatMul", "MatMul", "MatMulNBits")]
    shapes = [next(iter(a["input_type_shape"][0].values())) for a in products]
    return [shape[1] for shape in shapes if shape[0] == 1]


@pytest.mark.parametrize(
    "lowering",
    ["pack-projections{mlp=true} | lower-ort", "quantize{bits=8} | lower-ort",
     "quantize{bits=4} | lower-ort"],
    ids=["fp32", "int8", "int4"],
)  # fmt: skip
def test_products_have_the_rows_that_are_left(lowering: str, tmp_path: Path) -> None:
    """Three of four MLPs are gated; each has two products where gate and up are one matrix."""
    model, feed = lowered(f"{GATED.replace('anchors', 'anchors | kv-cache')} | {lowering}")
    each = 2 if "mlp=true" in lowering else 3
    assert computed(with_similarity(model, NEVER), feed, tmp_path) == [6] * 3 * each
    assert computed(with_similarity(model, ALWAYS), feed, tmp_path) == [0] * 3 * each
    some = with_similarity(model, 0.94)
    skipped = run(some, feed)[SKIPPED]
    assert 0 < skipped.mean() < 3
    assert sum(computed(some, feed, tmp_path)) == each * (3 * 6 - skipped.sum())


def test_where_nothing_is_gated_or_selected_already_it_is_refused() -> None:
    with pytest.raises(NotApplicable, match="finds no gated MLP; put gate-mlp before it"):
        Pipeline.parse("anchors | select-mlp-rows", GRAFTS).run(small())
    with pytest.raises(NotApplicable, match="compute the rows that are left already"):
        Pipeline.parse(f"{GATED} | select-mlp-rows | select-mlp-rows", GRAFTS).run(small(blocks=3))


def test_an_mlp_that_others_read_is_refused() -> None:
    model = small(blocks=3)
    Pipeline.parse(GATED, GRAFTS).run(model)
    wide = next(v for n in model.graph for v in n.outputs if v.name == "wide1")
    wide.shape, wide.type = ir.Shape(["B", "N", 16]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(wide)
    with pytest.raises(NotApplicable, match="nothing of the MLP of block 1 is its gate's alone"):
        SelectMlpRows().requires(model)


def test_an_mlp_that_reads_of_all_rows_together_is_refused() -> None:
    """A value without rows, which the block's attention reads, too."""
    text = (
        ONE_BY_ONE
        .replace("(again{i}, up)", "(lifted{i}, up)")
        .replace("  wide{i}", "  lifted{i} = Add (again{i}, top{i})\n  wide{i}")
        .replace("Unsqueeze (normed{i}", "Unsqueeze (raised{i}")
        .replace("  heads{i}", """  top{i} = ReduceMax (normed{i}, one)
  raised{i} = Add (normed{i}, top{i})
  heads{i}""")
    )  # fmt: skip
    with pytest.raises(NotApplicable, match="MLP of block 1 for some rows; leave the block") as e:
        Pipeline.parse(f"{GATED} | select-mlp-rows", GRAFTS).run(small(text, 3), FEED)
    assert "Add reads a value of all rows together" in str(e.value)
    assert "\n" not in str(e.value)


def test_the_law_sees_an_mlp_whose_rows_read_one_another() -> None:
    """The largest of the rows that are left is not that of all."""
    text = ONE_BY_ONE.replace(
        "mlp{i} = Add (wide{i}, bias)",
        """top{i} = ReduceMax (wide{i}, one)
  mlp{i} = Sub (wide{i}, top{i})""",
    )
    with pytest.raises(LawBroken, match=r"select-mlp-rows breaks the law '(neutral|selected)'"):
        Pipeline.parse(f"{GATED} | select-mlp-rows", GRAFTS).run(small(text, 3), FEED)


def test_the_law_sees_another_stream_of_rows_that_pass_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes by is the MLP's own input in place of the stream without it."""
    real = Gate.of

    def wrong(node: ir.Node) -> Gate:
        gate = real(node)
        norm = next(n for n in gate.mid.consumers() if n.op_type == "RMSNormalization")
        return replace(gate, mid=norm.outputs[0])

    model = small(blocks=3)
    Pipeline.parse(GATED, GRAFTS).run(model)
    monkeypatch.setattr(Gate, "of", wrong)
    with pytest.raises(LawBroken, match=r"select-mlp-rows breaks the law '(neutral|selected)'"):
        Pipeline((SelectMlpRows(),)).run(model, FEED)
