"""Routes, exits and gates of a host whose MLPs are mixtures of experts: blocks like any other."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.work import block_work
from graftline.passes.laws.gated import ALWAYS, NEVER, with_similarity
from tests.passes.grafts.small_blocks import (
    EXPERT_NUMBERS,
    EXPERTS,
    EXPERTS_IN_ONE_AXIS,
    FEED,
    small,
)

ROUTER, EXPERT = 16 * 3, 16 * 16


def experts(blocks: int = 4) -> ir.Model:
    return small(EXPERTS, blocks, EXPERT_NUMBERS)


@pytest.mark.parametrize(
    ("text", "law"),
    [("layer-skip{layers=1+2}", "route"), ("layer-skip{mlp=1}", "route"),
     ("layer-skip{attention=2}", "route"), ("cut-depth{blocks=2}", "prefix"),
     ("gate-mlp{similarity=0.5,first=0,last=0}", "gated")],
)  # fmt: skip
def test_a_block_of_experts_is_a_block_and_its_mixture_an_mlp(text: str, law: str) -> None:
    model = experts()
    laws = Pipeline.parse(f"anchors | {text}", GRAFTS).run(model, FEED)[-1].laws
    assert law in {row.law for row in laws}
    skipped = {"layer-skip{layers=1+2}": 2, "layer-skip{mlp=1}": 1, "cut-depth{blocks=2}": 2}
    left = sum(node.op_type == "GatherND" for node in model.graph)
    assert left == 4 - skipped.get(text, 0)


@pytest.mark.parametrize("lowering", ["", " | lower-ort"], ids=["canonical", "lowered"])
@pytest.mark.parametrize("text", [EXPERTS, EXPERTS_IN_ONE_AXIS], ids=["by-sequence", "in-one-axis"])
def test_a_gated_mixture_computes_the_rows_that_are_left(text: str, lowering: str) -> None:
    """Its router and the gathering of its matrices included, and no shape of all rows in it."""
    model = small(text, 4, EXPERT_NUMBERS)
    graft = f"gate-mlp{{similarity=0.5,first=0,last=0}}{lowering} | select-mlp-rows"
    laws = Pipeline.parse(f"anchors | {graft}", GRAFTS).run(model, FEED)[-1].laws
    assert any(row.law == "selected" and row.what.startswith("3 MLPs give") for row in laws)
    scored = next(v for n in model.graph for v in n.outputs if v.name == "scored1")
    model.graph.outputs.append(scored)
    for similarity, rows in ((NEVER, 4), (ALWAYS, 0)):
        assert run(with_similarity(model, similarity), FEED)["scored1"].shape[-2] == rows


def test_a_rest_begins_behind_experts() -> None:
    model = experts()
    Pipeline.parse("anchors | depth-rest{blocks=3}", GRAFTS).run(model)
    assert sum(node.op_type == "GatherND" for node in model.graph) == 1
    assert [value.name for value in model.graph.inputs] == ["stream.2"]


def test_a_step_reads_the_experts_that_a_row_chooses() -> None:
    model = experts()
    Pipeline.parse("anchors", GRAFTS).run(model)
    assert block_work(model.graph) == ([ROUTER + 2 * EXPERT] * 4, 16 * 9)
    model = experts()
    Pipeline.parse("anchors | layer-skip{speedup=1.3}", GRAFTS).run(model, FEED)
    # (4 x 560 + 144) over (3 x 560 + 144) is 1.31; without the experts it would take two blocks
    assert sum(node.op_type == "GatherND" for node in model.graph) == 3


def test_experts_of_which_nobody_knows_how_many_are_refused() -> None:
    text = EXPERTS.replace("TopK (scored{i}, chosen)", "TopK (scored{i}, asked{i})").replace(
        "  best{i}", "  asked{i} = ReduceMax <keepdims = 1> (one)\n  best{i}"
    )
    model = small(text, 3, EXPERT_NUMBERS)
    with pytest.raises(NotApplicable, match="block 0 multiplies by matrices that it picks") as e:
        Pipeline.parse("anchors | layer-skip{speedup=1.3}", GRAFTS).run(model)
    assert "\n" not in str(e.value)
