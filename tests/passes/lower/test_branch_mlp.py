"""branch-mlp: an MLP that every row passes by is not computed, and nothing else changes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.passes.laws.gated import ALWAYS, NEVER, with_similarity
from graftline.passes.lower.branch_mlp import BranchMlp, Gate
from tests.passes.grafts.small_blocks import FEED, small
from tests.passes.tiny_hosts import decoder_feed

GATED = "anchors | gate-mlp{similarity=0.5,first=0,last=0}"
SPEC = TinyDecoder(layers=4, hidden=32, mlp=64, vocabulary=64)


def lines(graph: ir.Graph) -> list[str]:
    return [f"{n.op_type}({', '.join(v.name or '' for v in n.inputs if v)})" for n in graph]


def test_before_and_after_a_gated_mlp() -> None:
    model = small(blocks=3)
    Pipeline.parse(f"{GATED} | branch-mlp", GRAFTS).run(model, FEED)
    first, last = (n for n in model.graph if n.op_type == "If")
    assert [n.op_type for n in first.attributes["then_branch"].as_graph()] == ["Identity"] * 3
    inside = [n.op_type for n in first.attributes["else_branch"].as_graph()]
    assert inside == [
        "RMSNormalization", "MatMul", "Add", "Add", "Mul", "ReduceSum", "ReduceL2", "ReduceL2",
        "Mul", "Mul", "GreaterOrEqual", "Or", "Where", "Cast", "ReduceMin", "Cast",
    ]  # fmt: skip
    ends = lines(last.attributes["else_branch"].as_graph())
    assert [line.partition("(")[0] for line in ends] == [
        "RMSNormalization", "MatMul", "Add", "Add", "Where",
    ]  # fmt: skip
    assert "MatMul(again1, up)" not in lines(model.graph)
    assert last.inputs[0] is first.outputs[2]


def lowered(text: str) -> tuple[ir.Model, Feed]:
    """A gated tiny decoder in branches, and a feed of it."""
    model = SPEC.build()
    infer_shapes(model)
    pipeline = Pipeline.parse(f"{text} | branch-mlp", GRAFTS)
    pipeline.run(model)
    feed = decoder_feed(64, batch=1, rows=1)
    for graft in pipeline.grafts:
        feed = graft.neutral(feed, model)
    return model, feed


def executed(model: ir.Model, feed: Feed, folder: Path) -> Counter[str]:
    """How often ONNX Runtime ran each operator in one call, those of branches included."""
    options: Any = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = {v.name for v in session.get_inputs()}
    session.run(None, {name: array for name, array in feed.items() if name in names})
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    return Counter(e["args"]["op_name"] for e in runs)


@pytest.mark.parametrize(
    ("lowering", "product"),
    [("pack-projections{mlp=true} | lower-ort", "FusedMatMul"),
     ("quantize{bits=8} | lower-ort", "MatMulNBits"),
     ("quantize{bits=4} | lower-ort", "MatMulNBits")],
    ids=["fp32", "int8", "int4"],
)  # fmt: skip
def test_products_of_mlps_that_all_rows_pass_by_are_not_run(
    lowering: str, product: str, tmp_path: Path
) -> None:
    """Three of four MLPs are gated; each has two products where gate and up are one matrix."""
    model, feed = lowered(f"{GATED.replace('anchors', 'anchors | kv-cache')} | {lowering}")
    whole = executed(with_similarity(model, NEVER), feed, tmp_path)
    passed = executed(with_similarity(model, ALWAYS), feed, tmp_path)
    each = 2 if "mlp=true" in lowering else 3
    assert whole[product] - passed[product] == 3 * each
    assert whole["GroupQueryAttention"] == passed["GroupQueryAttention"] == 4
    assert passed["Where"] == passed["Or"] == 0


def test_where_nothing_is_gated_or_branched_already_it_is_refused() -> None:
    with pytest.raises(NotApplicable, match="finds no gated MLP; put gate-mlp before it"):
        Pipeline.parse("anchors | branch-mlp", GRAFTS).run(small())
    with pytest.raises(NotApplicable, match="are in branches already"):
        Pipeline.parse(f"{GATED} | branch-mlp | branch-mlp", GRAFTS).run(small(blocks=3))


def test_an_mlp_that_others_read_is_refused() -> None:
    model = small(blocks=3)
    Pipeline.parse(GATED, GRAFTS).run(model)
    wide = next(v for n in model.graph for v in n.outputs if v.name == "wide1")
    wide.shape, wide.type = ir.Shape(["B", "N", 16]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(wide)
    with pytest.raises(NotApplicable, match="nothing of the MLP of block 1 is its gate's alone"):
        BranchMlp().requires(model)


def test_the_law_sees_branches_that_are_changed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes by is the stream with the MLP's own input in place of the stream without it."""
    real = Gate.of

    def wrong(node: ir.Node) -> Gate:
        gate = real(node)
        norm = next(n for n in gate.mid.consumers() if n.op_type == "RMSNormalization")
        return Gate(gate.node, gate.passes, norm.outputs[0], gate.later)

    model = small(blocks=3)
    Pipeline.parse(GATED, GRAFTS).run(model)
    monkeypatch.setattr(Gate, "of", wrong)
    with pytest.raises(LawBroken, match=r"branch-mlp breaks the law '(neutral|branches)'"):
        Pipeline((BranchMlp(),)).run(model, FEED)
