"""A graph with If bodies whose condition only the feed decides keeps both, all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from typer.testing import CliRunner

from graftline import optimize
from graftline.build.check import check
from graftline.bundle.store import load_graph
from graftline.commands.cli import app
from graftline.errors import LawBroken
from graftline.kinds.denoiser import Denoiser
from graftline.models.checkpoint import open_checkpoint
from graftline.passes import GRAFTS, Pipeline
from tests.kinds.denoisers import export_branching


def test_both_branches_are_kept_and_proven(tmp_path: Path) -> None:
    file = export_branching(tmp_path / "b.onnx")
    bundle = optimize(file, tmp_path / "b.graft")
    assert [n.op_type for n in load_graph(bundle.graph("ort-cpu")).graph].count("If") == 1
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    x = np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32)
    theirs, ours = (
        onnxruntime.InferenceSession(str(path)) for path in (file, bundle.graph("ort-cpu"))
    )
    answers: list[Any] = []
    for step in (3, 700):
        t = np.asarray([step])
        answers.append(theirs.run(None, {"x": x, "t": t})[0])
        got: Any = ours.run(None, {"sample": x, "timestep": t})[0]
        np.testing.assert_allclose(got, answers[-1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(*answers)
    shown = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    assert shown.exit_code == 0


@pytest.mark.parametrize("side", ["then_branch", "else_branch"])
def test_a_change_inside_a_body_breaks_a_law(tmp_path: Path, side: str) -> None:
    raw = open_checkpoint(export_branching(tmp_path / "b.onnx")).host().model
    model = raw.clone()
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    (node,) = (n for n in model.graph if n.op_type == "If")
    (conv,) = (n for n in node.attributes[side].as_graph() if n.op_type == "Conv")
    conv.attributes["dilations"] = ir.AttrInt64s("dilations", [2, 2])
    conv.attributes["pads"] = ir.AttrInt64s("pads", [2, 2, 2, 2])
    with pytest.raises(LawBroken, match="'neutral' at 'prediction'"):
        Denoiser().front_law(raw, model)
