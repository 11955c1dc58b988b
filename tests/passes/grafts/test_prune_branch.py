"""prune-branch: an output goes with all that only it needed; the others stay as they were."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.prune_branch import PruneBranch, pruned
from tests.kinds.samplers import DENOISER, SAMPLING, TWO_HEADS, canonical, grafted, lines

HEADS = f'{SAMPLING}\n[outputs]\nprediction = "noise"\n'
PROMPTED = TWO_HEADS.replace("float[B,3,6] text,", "float[B,3,6] text, float[B,2] hint,").replace(
    "  depth = MatMul (flat, more)", "  bare = MatMul (flat, more)\n  depth = Add (bare, hint)"
)
"""An input that only the output beside the prediction reads."""


def test_before_and_after(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "prune-branch", TWO_HEADS, HEADS)
    plain, _ = canonical(tmp_path / "plain", "prune-branch", DENOISER, HEADS)
    model, (report,) = grafted(tmp_path, "prune-branch", TWO_HEADS, HEADS)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    assert lines(model) == lines(plain)
    assert len(before.graph) - len(model.graph) == 2
    assert "more" not in model.graph.initializers
    told = pruned(PruneBranch(), before, model).what
    assert told.startswith("2 nodes gone; ")


def test_an_input_that_only_it_read_goes_too(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "prune-branch", PROMPTED, HEADS)
    model, _ = grafted(tmp_path, "prune-branch", PROMPTED, HEADS)
    names = [{v.name for v in one.graph.inputs} for one in (before, model)]
    assert names[0] - names[1] == {"condition.1"}


def test_a_kept_output_that_changes_breaks_the_neutral_law(tmp_path: Path) -> None:
    class Wrong(PruneBranch):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            (node,) = (n for n in model.graph if n.op_type == "Tanh")
            node.op_type = "Sigmoid"

    model, feed = canonical(tmp_path, "prune-branch", TWO_HEADS, HEADS)
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(),)).run(model, feed)


def test_what_is_left_unread_breaks_the_law_pruned(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "prune-branch", TWO_HEADS, HEADS)
    after = before.clone()
    Pipeline.parse("prune-branch", GRAFTS).run(after)
    node = ir.node("Neg", [after.graph.inputs[0]], name="late")
    after.graph.insert_before(after.graph[0], node)
    with pytest.raises(LawBroken, match="'pruned' at 'late': is read by nobody"):
        pruned(PruneBranch(), before, after)


@pytest.mark.parametrize(
    ("text", "passes", "message"),
    [
        (DENOISER, "prune-branch", "the host has no output beside the one it is for"),
        (TWO_HEADS, "prune-branch{outputs=auxiliary.1}",
         "'auxiliary.1' is no auxiliary output; did you mean 'auxiliary.0'"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, text: str, passes: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, HEADS)
