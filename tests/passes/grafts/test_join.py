"""join and swap-subgraph: the decoder behind the sample, and another one in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.optimize import optimize
from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.passes import Pipeline
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts.join import Join
from graftline.passes.grafts.swap_subgraph import SwapSubgraph, swapped
from graftline.ports import read_ports
from tests.kinds import samplers
from tests.kinds.samplers import SAMPLING, WHOLE, canonical, grafted, lines, write_sampler

NO_DECODER = WHOLE.partition("[decoder]")[0]


def test_before_and_after(tmp_path: Path) -> None:
    apart, _ = grafted(tmp_path, "collapse-loop{steps=1}")
    model, (_, report) = grafted(tmp_path, "collapse-loop{steps=1} | join")
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    made = lines(model)
    assert made[: len(apart.graph)] == lines(apart)
    assert made[len(apart.graph) :] == [
        "val_4 = Div(denoised, latents.scale)",
        "val_5 = Add(val_4, latents.shift)",
        "decoder.a = Conv(val_5, decoder.enter)",
        "decoder.b = Relu(decoder.a)",
        "decoder.c = Conv(decoder.b, spread)",
        "decoder.d = DepthToSpace(decoder.c)",
        "decoded = Conv(decoder.d, decoder.leave)",
    ]
    ports = [(p.name, p.owner) for p in read_ports(model)]
    assert ports == [("condition.0", "target"), ("decoded", "target"), ("noise", "target")]


def test_the_image_is_the_decoders_of_the_scaled_sample(tmp_path: Path) -> None:
    apart, feed = canonical(tmp_path, "collapse-loop | join")
    model, _ = grafted(tmp_path, "collapse-loop | join")
    loop, _ = grafted(tmp_path, "collapse-loop")
    given = {"noise": feed["sample"], "condition.0": feed["condition.0"]}
    sample = run(loop, given)["denoised"]
    decoder = ir.load(tmp_path / "decoder.onnx")
    (expected,) = run(decoder, {"z": sample / 0.5 + np.float32(0.1)}).values()
    np.testing.assert_allclose(run(model, given)["decoded"], expected, rtol=1e-4, atol=1e-4)
    assert len(apart.graph.outputs) == 2


def test_a_decoder_swapped_is_gone(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "swap-subgraph")
    model, (report,) = grafted(tmp_path, "swap-subgraph")
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    assert lines(model)[-2:] == [
        "replacement.a = Conv(decoder.latents, replacement.spread)",
        "decoder.decoded = DepthToSpace(replacement.a)",
    ]
    assert weight_bytes(model) < weight_bytes(before) / 2
    told = swapped(SwapSubgraph(), before, model).what
    assert told.startswith("5 values of the decoder before gave way to 2; ")


def test_the_swapped_decoder_is_what_is_joined(tmp_path: Path) -> None:
    model, reports = grafted(tmp_path, "swap-subgraph | collapse-loop{steps=2} | join")
    assert all(row.status == "held" for report in reports for row in report.laws)
    assert lines(model)[-1].startswith("decoded = DepthToSpace(replacement.a)")


def test_what_else_the_other_decoder_takes_stays_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinted = samplers.SMALLER.replace("w] z,", "w] z, float[N,12] hint,").replace(
        '  pixels = DepthToSpace <blocksize = 2, mode = "CRD"> (a)',
        "  two = Constant <value_ints = [2, 3]> ()\n  told = Unsqueeze (hint, two)\n"
        '  b = Add (a, told)\n  pixels = DepthToSpace <blocksize = 2, mode = "CRD"> (b)',
    )
    monkeypatch.setattr(samplers, "SMALLER", hinted)
    graph, spec = write_sampler(tmp_path, spec=WHOLE)
    passes = "swap-subgraph | collapse-loop{steps=1} | join"
    made = optimize(graph, tmp_path / "out.graft", passes=passes, spec=spec)
    assert {w.law: w.status for w in made.manifest.laws}["whole"] == "held"
    names = [p.name for p in made.manifest.main.ports if p.direction == "in"]
    assert names == ["condition.0", "decoder.condition.0", "noise"]


def test_graphs_that_call_their_batch_alike_run_at_sizes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = samplers.DECODER.replace("[N,4,h,w]", "[B,4,H,W]").replace("[N,3", "[B,3")
    monkeypatch.setattr(samplers, "DECODER", alike)
    apart, _ = canonical(tmp_path, "join")
    shapes = {p.name: p.shape for p in read_ports(apart)}
    assert shapes["decoder.latents"] == ("decoder_B", 4, "decoder_H", "decoder_W")
    joined, _ = grafted(tmp_path, "collapse-loop{steps=1} | join")
    assert {p.name: p.shape[:2] for p in read_ports(joined)}["decoded"] == ("B", 3)


def test_a_scale_the_wrong_way_round_breaks_the_neutral_law(tmp_path: Path) -> None:
    class Wrong(Join):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            (node,) = (n for n in model.graph if n.op_type == "Div")
            node.op_type = "Mul"

    model, feed = canonical(tmp_path, "collapse-loop | join")
    Pipeline.parse("collapse-loop{steps=1}", samplers.GRAFTS).run(model)
    feed = {k: v for k, v in feed.items() if k != "timestep"} | {"noise": feed["sample"]}
    feed.pop("sample")
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(),)).run(model, feed)


def test_a_decoder_left_behind_breaks_the_law_swapped(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "swap-subgraph")
    with pytest.raises(LawBroken, match=r"'swapped' at 'decoder.a': is of the decoder before"):
        swapped(SwapSubgraph(), before, before)


WIDE = samplers.SMALLER.replace("[N,4,h,w]", "[N,5,h,w]").replace("[12,4,1,1]", "[12,5,1,1]")
GREY = samplers.SMALLER.replace("[N,3,H2,W2]", "[N,1,H2,W2]").replace("[12,4,1,1]", "[4,4,1,1]")


@pytest.mark.parametrize(
    ("passes", "spec", "other", "message"),
    [
        ("join", WHOLE, None, "needs a sample to decode; put collapse-loop before it"),
        ("collapse-loop | join", NO_DECODER, None, "needs a decoder beside the denoiser"),
        ("swap-subgraph", WHOLE.partition("[repl")[0], None, r"name its graph in the spec: \[repl"),
        ("swap-subgraph", WHOLE, WIDE,
         r"replacement's latents FLOAT .*_N, 5, .* do not fit the decoder's latents"),
        ("swap-subgraph", WHOLE, GREY, r"replacement's decoded FLOAT .*_N, 1, .* do not"),
        ("collapse-loop | join | swap-subgraph", WHOLE, None, "put it before join"),
    ],
)  # fmt: skip
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: str, spec: str, other: str | None,
    message: str,
) -> None:  # fmt: skip
    if other is not None:
        monkeypatch.setattr(samplers, "SMALLER", other)
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, spec=spec)


def test_latents_of_another_size_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = samplers.DECODER.replace("[N,4,h,w]", "[N,6,h,w]").replace("[8,4,3,3]", "[8,6,3,3]")
    monkeypatch.setattr(samplers, "DECODER", wide)
    with pytest.raises(NotApplicable, match=r"the sample FLOAT \[B, 4, H, W\] do not fit the dec"):
        grafted(
            tmp_path, "collapse-loop | join", spec=f"{SAMPLING}\n[decoder]\ngraph='decoder.onnx'"
        )
