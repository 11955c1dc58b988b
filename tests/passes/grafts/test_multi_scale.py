"""multi-scale: one call of the denoiser for each size, and one noise for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import DenoiserFacts, read_facts
from graftline.passes import Pipeline
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts.multi_scale import MultiScale
from graftline.ports import read_ports
from tests.kinds.samplers import DENOISER, PYRAMID, SAMPLING, canonical, grafted, lines


def test_before_and_after(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "multi-scale", spec=PYRAMID)
    model, (report,) = grafted(tmp_path, "multi-scale", spec=PYRAMID)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    made = lines(model)
    assert made[:5] == [
        "val_0 = AveragePool(noise)",
        "val_1 = Resize(val_0, , twice)",
        "val_2 = Sub(noise, val_1)",
        "val_3 = Mul(val_2, within.blocks)",
        "val_4 = Mul(val_0, of.averages)",
    ]
    between = next(n for n, line in enumerate(made) if line.startswith("step.1.h0"))
    assert [line.partition(" = ")[2].partition("(")[0] for line in made[between - 4 : between]] == [
        "Resize", "Mul", "Mul", "Add",
    ]  # fmt: skip
    assert sum("Conv" in line for line in made) == 3 * sum("Conv" in line for line in lines(before))
    assert weight_bytes(model) < 1.2 * weight_bytes(before), "one set of weights for all sizes"
    ports = [(p.name, p.shape) for p in read_ports(model)]
    assert ports == [
        ("condition.0", ("B", 3, 6)),
        ("noise", ("B", 4, "H", "W")),
        ("denoised", ("B", 4, "H", "W")),
    ]
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    assert facts.sampling is not None
    assert facts.sampling.told() == "drawn in 3 steps of pyramid from flow over 3 scales"


@pytest.mark.parametrize(
    "passes", ["multi-scale{steps=6}", "collapse-loop", "collapse-loop | join"]
)
def test_scales_may_have_several_steps(tmp_path: Path, passes: str) -> None:
    spec = f'{PYRAMID}\n[decoder]\ngraph = "decoder.onnx"\n'
    model, reports = grafted(tmp_path, passes, spec=spec)
    assert {r.status for report in reports for r in report.laws if r.law == "neutral"} == {"held"}
    assert sum(n.name is not None and n.name.endswith(".h0") for n in model.graph) <= 6
    assert sum(n.op_type == "AveragePool" for n in model.graph) == 2


def test_the_time_of_the_first_size_is_folded(tmp_path: Path) -> None:
    model, _ = grafted(tmp_path, "fold-time", spec=PYRAMID)
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    assert facts.time == 1000


def test_sizes_in_front_cost_a_quarter_each(tmp_path: Path) -> None:
    """Numbers that the network's convolutions give, for one call at each of three sizes."""
    model, _ = grafted(tmp_path, "multi-scale", spec=PYRAMID)
    kept = [n.outputs[0] for n in model.graph if n.op_type == "Conv"]
    outputs = [v.name or "" for v in kept]
    model.graph.outputs.extend(v for v in kept if not v.is_graph_output())
    noise = np.random.default_rng(0).standard_normal((1, 4, 32, 64)).astype(np.float32)
    made = run(model, {"noise": noise, "condition.0": np.ones((1, 3, 6), np.float32)})
    sizes = [made[name].size for name in outputs]
    full = sizes[-2] + sizes[-1]
    assert sum(sizes) == full * (1 + 1 / 4 + 1 / 16)
    assert full == (8 + 4) * 32 * 64


def test_a_sample_doubled_smoothly_breaks_the_neutral_law(tmp_path: Path) -> None:
    class Wrong(MultiScale):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            for node in model.graph:
                if node.op_type == "Resize":
                    node.attributes["mode"] = ir.AttrString("mode", "linear")

    model, feed = canonical(tmp_path, "multi-scale", spec=PYRAMID)
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(),)).run(model, feed)


@pytest.mark.parametrize(
    ("text", "spec", "passes", "message"),
    [
        (DENOISER, SAMPLING, "multi-scale", "samples over scales, and sampling.scheduler is ddim"),
        (DENOISER, PYRAMID, "multi-scale{steps=4}", "sampling.steps is 4; it must be a multiple"),
        (DENOISER.replace("H,W", "8,8"), PYRAMID, "multi-scale",
         "at several sizes, and it takes samples of 8 x 8 alone; export it with a free height"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, text: str, spec: str, passes: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, spec)
