"""fold-time: what depends on the time step alone becomes constants, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import DenoiserFacts, read_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts.fold_time import FoldTime, folded
from graftline.passes.graph.folding import dependents, fold
from graftline.ports import read_ports
from tests.kinds.denoisers import export_branching
from tests.kinds.samplers import DENOISER, SAMPLING, TIMED, canonical, grafted, lines

AFTER = [
    "meant = ReduceMean(condition.0, first)",
    "shifts = MatMul(meant, told)",
    "shift = Unsqueeze(shifts, places)",
    "h0 = Conv(sample, enter)",
    "h1 = Mul(h0, folded.scale)",
    "h2 = Add(h1, shift)",
    "h3 = Tanh(h2)",
    "prediction = Conv(h3, leave)",
]
EXPANDED = """
<ir_version: 10, opset_import: ["" : 20]>
expanded (float[B,4,H,W] x, float t, float[4] rates, float[4,8,1,1] leave)
  => (float[B,4,H,W] noise)
{
  two = Constant <value_ints = [2]> ()
  four = Constant <value_ints = [4]> ()
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  places = Constant <value_ints = [2, 3]> ()
  shape = Shape (x)
  rows = Gather (shape, zero)
  times = Expand (t, rows)
  column = Unsqueeze (times, one)
  waves = Mul (column, rates)
  plane = Unsqueeze (waves, places)
  ends = Slice (shape, two, four)
  ones = Constant <value_ints = [1, 1]> ()
  wide = Concat <axis = 0> (ones, ends)
  spread = Expand (plane, wide)
  both = Concat <axis = 1> (x, spread)
  noise = Conv (both, leave)
}
"""
"""A time step without a batch, expanded to it, and then over every pixel."""


def test_before_and_after(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "fold-time{t=500}")
    model, reports = grafted(tmp_path, "fold-time{t=500}")
    assert len(before.graph) - len(model.graph) == TIMED
    assert lines(model) == AFTER
    assert weight_bytes(model) < weight_bytes(before)
    assert [p.name for p in read_ports(model)] == ["sample", "condition.0", "prediction"]
    assert {row.law: row.status for row in reports[0].laws}["neutral"] == "held"
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    assert facts.time == 500


def test_it_reports_the_nodes_and_bytes_that_went(tmp_path: Path) -> None:
    model, _ = canonical(tmp_path, "fold-time{t=500}")
    (report,) = Pipeline.parse("fold-time{t=500}", GRAFTS).run(model)
    told = {row.law: row.what for row in report.laws}["folded"]
    assert told.startswith(f"{TIMED} nodes that depend on the time alone are constants; ")
    assert "bytes of weights became" in told


def test_the_time_of_a_single_step_is_the_schedules(tmp_path: Path) -> None:
    model, _ = grafted(tmp_path, "fold-time")
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    assert facts.time == 999


def test_a_batch_that_is_read_off_the_sample_is_expanded_to(tmp_path: Path) -> None:
    """All but the last Expand go: that one depends on the sample's size."""
    model, _ = grafted(tmp_path, "fold-time{t=7}", EXPANDED)
    kinds = [node.op_type for node in model.graph]
    assert not {"Mul", "Unsqueeze", "Gather"} & set(kinds)


def test_an_if_of_the_time_becomes_its_branch(tmp_path: Path) -> None:
    graph = ir.load(export_branching(tmp_path / "b.onnx"))
    import onnx_ir.passes.common as common

    common.LiftSubgraphInitializersToMainGraphPass()(graph)
    for time in (20, 800):
        model = graph.clone()
        fold(model, model.graph.inputs[1], time, "test")
        assert [n.op_type for n in model.graph] == ["Conv", "Tanh"]
        x = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
        step = np.full(2, time)
        (got,) = run(model, {"x": x, "t": step}).values()
        (expected,) = run(graph, {"x": x, "t": step}).values()
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_another_time_breaks_the_neutral_law(tmp_path: Path) -> None:
    class Wrong(FoldTime):
        def apply(self, model: ir.Model) -> None:
            FoldTime(t=510).apply(model)

    model, feed = canonical(tmp_path, "fold-time")
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(t=500),)).run(model, feed)


def test_nodes_that_are_left_break_the_law_folded(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "fold-time")
    after = before.clone()
    FoldTime(t=500).apply(after)
    source = before.graph.inputs[1]
    assert len(dependents(before.graph, source)) == TIMED
    held = after.graph.initializers["folded.scale"]
    again = ir.node("Sin", [held], name="late")
    again.outputs[0].name = "sine"
    after.graph.insert_before(after.graph[0], again)
    with pytest.raises(LawBroken, match="'folded' at Sin late: 1 of 10 nodes"):
        folded(FoldTime(t=500), before, after)


@pytest.mark.parametrize(
    ("passes", "spec", "message"),
    [
        ("fold-time", "", "fold-time does not know which time step"),
        ("fold-time | fold-time", SAMPLING, "needs a denoiser that takes a time step"),
    ],
)
def test_refusals(tmp_path: Path, passes: str, spec: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, spec=spec)


def test_a_fraction_of_a_whole_time_step_is_refused(tmp_path: Path) -> None:
    text = DENOISER.replace("float[B] t", "int64[B] when").replace(
        "  first = C", "  t = Cast <to = 1> (when)\n  first = C"
    )
    with pytest.raises(NotApplicable, match=r"time step 7.5 is no whole number, and 'timestep' is"):
        grafted(tmp_path, "fold-time{t=7.5}", text)
    assert len(grafted(tmp_path, "fold-time{t=7}", text)[0].graph) == len(AFTER)
