"""collapse-loop: the loop in the graph draws what the published loop draws, over weights once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import DenoiserFacts, read_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts import collapse_loop
from graftline.passes.grafts.collapse_loop import Caller, CollapseLoop
from graftline.ports import read_ports
from tests.kinds.samplers import DENOISER, SAMPLING, TWO_HEADS, canonical, grafted

SPECS = {
    "epsilon": SAMPLING,
    "v": SAMPLING.replace("epsilon", "v"),
    "x0, clipped": SAMPLING.replace("epsilon", "x0") + "clip = 0.8\n",
    "eta": SAMPLING + "eta = 0.6\n",
    "ddpm": SAMPLING.replace("ddim", "ddpm"),
    "ddpm, clipped": SAMPLING.replace("ddim", "ddpm") + "clip = 0.8\n",
    "euler": SAMPLING.replace("ddim", "euler"),
    "euler, leading": SAMPLING.replace("ddim", "euler").replace("trailing", "leading"),
    "ancestral": SAMPLING.replace("ddim", "euler-ancestral"),
    "lcm": SAMPLING.replace("ddim", "lcm"),
    "flow": SAMPLING.replace("ddim", "flow-match").replace("epsilon", "flow")
    .replace("trailing", "linspace") + "shift = 3.0\n",
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("steps", [1, 4])
def test_the_loop_is_the_published_one(tmp_path: Path, spec: str, steps: int) -> None:
    model, (report,) = grafted(tmp_path, f"collapse-loop{{steps={steps}}}", spec=spec)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    assert facts.sampling is not None
    assert facts.sampling.steps == steps
    assert [p.name for p in read_ports(model)][:2] == ["condition.0", "noise"]


def test_fifty_steps_are_the_published_fifty(tmp_path: Path) -> None:
    spec = SAMPLING.replace("steps = 4", "steps = 50")
    model, (report,) = grafted(tmp_path, "collapse-loop", spec=spec)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    assert sum(node.op_type == "Conv" for node in model.graph) == 100


def test_ddim_by_hand_over_the_raw_graph(tmp_path: Path) -> None:
    """The whole loop in numpy, from the papers' formulas alone."""
    model, feed = canonical(tmp_path, "collapse-loop", spec=SAMPLING)
    host = model.clone()
    Pipeline.parse("collapse-loop", GRAFTS).run(model)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x, text = feed["sample"].astype(np.float64), feed["condition.0"]
    for here, there in ((999, 749), (749, 499), (499, 249), (249, None)):
        a, b = kept[here], 1.0 if there is None else kept[there]
        given = {"sample": x.astype(np.float32), "timestep": np.full(len(x), here, np.float32)}
        noise = run(host, given | {"condition.0": text})["prediction"]
        clean = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
        x = np.sqrt(b) * clean + np.sqrt(1 - b) * noise
    got = run(model, {"noise": feed["sample"], "condition.0": text})["denoised"]
    assert np.max(np.abs(got - x)) < 1e-5 * np.max(np.abs(x))


TOKENS = DENOISER.replace("H,W", "8,8")
PREFIX = """
[sampling]
prediction = "x0"
scheduler = "prefix"
steps = 2
train_steps = 64
"""


def test_a_prefix_is_kept_and_the_first_noise_behind_it(tmp_path: Path) -> None:
    model, (report,) = grafted(tmp_path, "collapse-loop", TOKENS, PREFIX)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    host, feed = canonical(tmp_path, "collapse-loop", TOKENS, PREFIX)
    noise, text = feed["sample"], feed["condition.0"]

    def tokens(x: np.ndarray, known: int) -> np.ndarray:
        step = np.full(len(x), known, np.float32)
        said = run(host, {"sample": x, "timestep": step, "condition.0": text})["prediction"]
        return said.reshape(len(x), 4, 64)

    half = noise.reshape(len(noise), 4, 64).copy()
    half[:, :, :32] = tokens(noise, 0)[:, :, :32]
    expected = tokens(half.reshape(noise.shape), 32).reshape(noise.shape)
    got = run(model, {"noise": noise, "condition.0": text})["denoised"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert np.abs(got - tokens(noise, 0).reshape(noise.shape)).max() > 1e-3


def test_steps_share_weights_and_what_no_step_changes(tmp_path: Path) -> None:
    one, _ = grafted(tmp_path, "collapse-loop{steps=1}")
    four, _ = grafted(tmp_path, "collapse-loop{steps=4}")
    constants = weight_bytes(four) - weight_bytes(one)
    assert constants < 3 * (8 * 4) + 12 * 8  # a scale and a few factors for each step
    kinds = [node.op_type for node in four.graph]
    assert kinds.count("Conv") == 8
    assert kinds.count("ReduceMean") == 1  # the mean of the text, for all steps
    assert not {"Sin", "Sigmoid", "Concat"} & set(kinds)


def test_new_noise_is_an_input_for_each_step_that_adds_some(tmp_path: Path) -> None:
    model, _ = grafted(tmp_path, "collapse-loop", spec=SPECS["ancestral"])
    names = [v.name for v in model.graph.inputs]
    assert names == ["condition.0", "noise", "fresh_noise.0", "fresh_noise.1", "fresh_noise.2"]


@pytest.mark.parametrize(
    ("wrong", "of"),
    [
        (lambda kind, moment: ((1.0, 0.0), (0.0, 1.0)), "epsilon"),
        (lambda kind, moment: tuple((a, -b) for a, b in SPLIT(kind, moment)), "v"),
    ],
)
def test_a_wrong_formula_breaks_the_neutral_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any, of: str
) -> None:
    monkeypatch.setattr(collapse_loop, "split", wrong)
    with pytest.raises(LawBroken, match="neutral"):
        grafted(tmp_path, "collapse-loop", spec=SPECS[of])


SPLIT = collapse_loop.split


def test_steps_at_one_time_break_the_neutral_law(tmp_path: Path) -> None:
    class Wrong(CollapseLoop):
        def caller(self, graph: ir.Graph, part: ir.Model) -> Caller:
            call = super().caller(graph, part)
            return lambda given, time, step: call(given, 999, step)

    model, feed = canonical(tmp_path, "collapse-loop")
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(),)).run(model, feed)


WHOLE_TIMES = DENOISER.replace("float[B] t", "int64[B] when").replace(
    "  first = C", "  t = Cast <to = 1> (when)\n  first = C"
)
SIGMA = DENOISER.replace("float[4,8,3,3] leave", "float[8,8,3,3] leave").replace(
    "=> (float[B,4,H,W] noise)", "=> (float[B,8,H,W] noise)"
)


@pytest.mark.parametrize(
    ("passes", "text", "spec", "message"),
    [
        ("collapse-loop", DENOISER, "", "does not know how the host is sampled; say"),
        ("collapse-loop{deterministic=true}", DENOISER, SPECS["eta"],
         "ddim is not deterministic: sampling.eta is 0.6"),
        ("collapse-loop{deterministic=true}", DENOISER, SPECS["ancestral"],
         "euler-ancestral is not deterministic: its steps add new noise"),
        ("collapse-loop", DENOISER, PREFIX, "is 64, the tokens of .* and the sample is H x W"),
        ("collapse-loop", DENOISER.replace("H,W", "8,6"), PREFIX, "and the sample is 8 x 6"),
        ("collapse-loop{steps=2000}", DENOISER, SAMPLING, "sampling.steps is 2000; it must be"),
        ("fold-time | collapse-loop", DENOISER, SAMPLING, "needs a denoiser that takes a time"),
        ("collapse-loop", WHOLE_TIMES, SPECS["flow"], "is no whole number, and .timestep. is"),
        ("collapse-loop", SIGMA, SAMPLING, "differ in shape; a prediction with its variance"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, passes: str, text: str, spec: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, spec)


def test_an_output_beside_the_prediction_is_refused(tmp_path: Path) -> None:
    spec = f'{SAMPLING}\n[outputs]\nprediction = "noise"\n'
    with pytest.raises(NotApplicable, match=r"'auxiliary.0' would be of every step; put prune-bra"):
        grafted(tmp_path, "collapse-loop", TWO_HEADS, spec)
    assert grafted(tmp_path, "prune-branch | collapse-loop", TWO_HEADS, spec)


def test_one_step_without_new_noise_is_deterministic(tmp_path: Path) -> None:
    model, _ = grafted(tmp_path, "collapse-loop{steps=1,deterministic=true}", spec=SPECS["lcm"])
    assert [v.name for v in model.graph.inputs] == ["condition.0", "noise"]
