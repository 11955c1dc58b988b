"""fold-guidance: one call of twice the batch in place of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.passes import Pipeline
from graftline.passes.grafts.fold_guidance import FoldGuidance
from tests.kinds.samplers import DENOISER, SAMPLING, TWO_HEADS, WHOLE, canonical, grafted, lines

FIXED = DENOISER.replace("[B,4", "[2,4")
HEADS = f'{WHOLE}\n[outputs]\nprediction = "noise"\n'


def test_before_and_after(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "fold-guidance")
    model, (report,) = grafted(tmp_path, "fold-guidance")
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    made = lines(model)
    assert len(made) == len(before.graph) + 7
    assert made[:3] == [
        "val_0 = Concat(condition.0, unconditional.0)",
        "val_1 = Concat(sample, sample)",
        "val_2 = Concat(timestep, timestep)",
    ]
    assert made[-4:] == [
        "val_3, val_4 = Split(guided.prediction)",
        "val_5 = Sub(val_3, val_4)",
        "val_6 = Mul(val_5, guidance)",
        "prediction = Add(val_4, val_6)",
    ]


def test_one_call_is_made_where_there_were_two(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "fold-guidance")
    model, _ = grafted(tmp_path, "fold-guidance")
    count = [sum(n.op_type == "Conv" for n in one.graph) for one in (before, model)]
    assert count[0] == count[1] == 2


def test_it_is_the_published_sum_of_two_calls(tmp_path: Path) -> None:
    host, feed = canonical(tmp_path, "fold-guidance")
    model, _ = grafted(tmp_path, "fold-guidance{scale=5.0}")
    other = {"condition.0": feed["condition.0"] * 0}
    c, u = (run(host, one)["prediction"] for one in (feed, feed | other))
    got = run(model, feed | {"unconditional.0": other["condition.0"]})["prediction"]
    np.testing.assert_allclose(got, u + 5.0 * (c - u), atol=1e-4)


def test_the_time_folds_through_both_branches_and_the_loop(tmp_path: Path) -> None:
    model, reports = grafted(tmp_path, "fold-guidance | collapse-loop{steps=2}")
    assert all(row.status == "held" for report in reports for row in report.laws)
    assert not {"Sin", "Sigmoid"} & {n.op_type for n in model.graph}


@pytest.mark.parametrize("place", [0, 1])
def test_branches_in_the_wrong_place_break_the_neutral_law(tmp_path: Path, place: int) -> None:
    class Wrong(FoldGuidance):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            (split,) = (n for n in model.graph if n.op_type == "Split")
            (apart,) = (n for n in model.graph if n.op_type == "Sub")
            apart.replace_input_with(place, split.outputs[1 - place])

    model, feed = canonical(tmp_path, "fold-guidance")
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(),)).run(model, feed)


@pytest.mark.parametrize(
    ("passes", "text", "spec", "message"),
    [
        ("fold-guidance", DENOISER, "", "does not know how the host is sampled"),
        ("fold-guidance", DENOISER, SAMPLING, "nothing to fold at guidance 1"),
        ("collapse-loop | fold-guidance", DENOISER, WHOLE, "put it before collapse-loop"),
        ("fold-guidance | fold-guidance", DENOISER, WHOLE, "is guided already"),
        ("fold-guidance", TWO_HEADS, HEADS, "'auxiliary.0' would be of both branches"),
        ("fold-guidance", FIXED, WHOLE, r"'sample' \[2, 4, 'H', 'W'\] has no free batch"),
    ],
)
def test_refusals(tmp_path: Path, passes: str, text: str, spec: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, spec)
