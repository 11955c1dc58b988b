"""encoder-reuse: the encoder runs at key steps alone, and the samples are the published loop's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.facts import DenoiserFacts, read_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.skips import SkipCut, halves, skip_cut
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.laws.common import infer_shapes
from graftline.sampling.spec import Sampling
from tests.kinds.denoisers import export_branching
from tests.kinds.samplers import DENOISER, SAMPLING, TWO_HEADS, built, canonical, grafted
from tests.kinds.unet import DECODER, ENCODER, UNET


def cut_of(text: str) -> SkipCut | Mismatch:
    model = built(text)
    infer_shapes(model)
    (sample,) = (v for v in model.graph.inputs if v.name == "x")
    return skip_cut(model.graph, sample, model.graph.outputs[0])


def convolutions(model: ir.Model) -> int:
    return sum(node.op_type == "Conv" for node in model.graph)


def test_the_cut_is_at_the_skip_connections() -> None:
    cut = cut_of(UNET)
    assert isinstance(cut, SkipCut)
    assert [v.name for v in cut.features] == ["m2", "skip2", "skip1"]
    assert [n.outputs[0].name for n in cut.joins] == ["joined2", "joined1"]
    whole, decoder = halves(built(UNET), cut, "noise")
    assert [v.name for v in whole.graph.outputs] == [
        "noise", "feature.0", "feature.1", "feature.2"
    ]  # fmt: skip
    assert (convolutions(whole), convolutions(decoder)) == (ENCODER + DECODER, DECODER)
    assert not any(v.uses() for v in decoder.graph.inputs if v.name == "x")


def test_key_steps_run_all_of_it_and_steps_between_the_decoder(tmp_path: Path) -> None:
    """Its first convolution reads features alone, and so is the key step's."""
    model, (report,) = grafted(tmp_path, "encoder-reuse{keys=0+2}", UNET, SAMPLING)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    assert convolutions(model) == 2 * (ENCODER + DECODER) + 2 * (DECODER - 1)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Resize") == 4
    facts = read_facts(model)
    assert isinstance(facts, DenoiserFacts)
    assert facts.keys == (0, 2)


def test_with_all_steps_it_is_the_host(tmp_path: Path) -> None:
    model, feed = canonical(tmp_path, "encoder-reuse", UNET, SAMPLING)
    every, loop = model.clone(), model.clone()
    Pipeline.parse("encoder-reuse{keys=0+1+2+3}", GRAFTS).run(every)
    Pipeline.parse("collapse-loop", GRAFTS).run(loop)
    assert convolutions(every) == convolutions(loop) == 4 * (ENCODER + DECODER)
    given = {"noise": feed["sample"], "condition.0": feed["condition.0"]}
    made = (run(one, given)["denoised"] for one in (every, loop))
    np.testing.assert_allclose(*made, rtol=0, atol=1e-6)


def test_by_hand_over_a_decoder_written_apart(tmp_path: Path) -> None:
    """DDIM in numpy over two graphs: the UNet with three more outputs, and its last ten nodes."""
    model, feed = canonical(tmp_path, "encoder-reuse", UNET, SAMPLING)
    Pipeline.parse("encoder-reuse{keys=0+2}", GRAFTS).run(model)
    more = ("m2", "skip2", "skip1")
    whole = built(UNET)
    values = {v.name: v for n in whole.graph for v in n.outputs}
    whole.graph.outputs.extend(values[name] for name in more)
    decoder = built(UNET)
    for name in more:
        (old,) = (v for n in decoder.graph for v in n.outputs if v.name == name)
        new = ir.Value(name=f"given.{name}", type=ir.TensorType(ir.DataType.FLOAT))
        decoder.graph.inputs.append(new)
        old.replace_all_uses_with(new)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x, text = feed["sample"].astype(np.float64), feed["condition.0"]
    held: dict[str, np.ndarray] = {}
    for step, (here, there) in enumerate(((999, 749), (749, 499), (499, 249), (249, None))):
        a, b = kept[here], 1.0 if there is None else kept[there]
        given = {"x": x.astype(np.float32), "t": np.full(len(x), here, np.float32), "text": text}
        made = run(decoder if step % 2 else whole, given | held)
        if step % 2 == 0:
            held = {f"given.{name}": made[name] for name in more}
        noise = made["noise"]
        clean = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
        x = np.sqrt(b) * clean + np.sqrt(1 - b) * noise
    got = run(model, {"noise": feed["sample"], "condition.0": text})["denoised"]
    assert np.max(np.abs(got - x)) < 1e-5 * np.max(np.abs(x))


def test_guided_and_noisy_loops_hold_the_law(tmp_path: Path) -> None:
    guided = f"{SAMPLING}guidance = 3.0\n"
    for passes, spec in (
        ("fold-guidance | encoder-reuse{keys=0+1}", guided),
        ("encoder-reuse{keys=0+3}", SAMPLING.replace("ddim", "euler-ancestral")),
    ):
        _, reports = grafted(tmp_path, passes, UNET, spec)
        assert {row.law: row.status for row in reports[-1].laws}["neutral"] == "held"


def test_the_papers_key_steps_in_proportion() -> None:
    graft = GRAFTS["encoder-reuse"]()
    for steps, keys in (
        (50, (0, 1, 2, 3, 5, 10, 15, 25, 35)), (20, (0, 1, 2, 4, 6, 10, 14)), (4, (0, 1, 2)),
        (1, (0,)),
    ):  # fmt: skip
        sampling = Sampling("epsilon", "ddim", steps)
        assert graft.key_steps(sampling) == keys  # type: ignore[attr-defined]


DENSE = UNET.replace(
    "  skip1 = Tanh (e1)",
    "  grown = Tanh (e1)\n  both = Concat <axis = 1> (grown, e1)\n  skip1 = Conv (both, thin)",
).replace("float[8,8,3,3] down,", "float[8,8,3,3] down, float[8,16,1,1] thin,")  # fmt: skip
"""With a dense connection within its encoder."""
FROM_SIZES = UNET.replace(
    "  up = Resize <mode = \"nearest\"> (d2, , twice)",
    "  size = Shape (skip1)\n  up = Resize <mode = \"nearest\"> (d2, , , size)",
)
"""Its decoder asks an encoder's value for its size."""


def test_dense_blocks_and_sizes_of_the_encoder_are_the_encoders(tmp_path: Path) -> None:
    cut = cut_of(DENSE)
    assert isinstance(cut, SkipCut)
    assert [v.name for v in cut.features] == ["m2", "skip2", "skip1"]
    cut = cut_of(FROM_SIZES)
    assert isinstance(cut, SkipCut)
    assert [v.name for v in cut.features] == ["m2", "skip2", "size", "skip1"]
    _, (report,) = grafted(tmp_path, "encoder-reuse{keys=0+2}", FROM_SIZES, SAMPLING)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"


ADDED = UNET.replace(
    "  joined1 = Concat <axis = 1> (up, skip1)\n  d3 = Conv <pads = [1, 1, 1, 1]> (joined1, high)",
    "  joined1 = Add (up, skip1)\n  d3 = Conv <pads = [1, 1, 1, 1]> (joined1, down)",
).replace(
    "  joined2 = Concat <axis = 1> (m2, skip2)\n  d0 = Conv <pads = [1, 1, 1, 1]> (joined2, low)",
    "  d0 = Conv <pads = [1, 1, 1, 1]> (m2, down)",
)


@pytest.mark.parametrize(
    ("passes", "text", "message"),
    [
        ("encoder-reuse", DENOISER, "not a UNet: no skip connection ends here"),
        ("encoder-reuse", ADDED, "no skip connection ends here: no Concat joins .* at: Conv"),
        ("encoder-reuse{keys=1+2}", UNET, "name each key step once, the first among them"),
        ("encoder-reuse{keys=0+0}", UNET, "name each key step once"),
        ("encoder-reuse{keys=0+x}", UNET, "name each key step once"),
        ("encoder-reuse{keys=0+4}", UNET, "the last of 4 steps is 3"),
        ("encoder-reuse | collapse-loop", UNET, "collapse-loop needs a denoiser that takes a time"),
    ],
)
def test_refusals(tmp_path: Path, passes: str, text: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, SAMPLING)


def test_branches_of_an_if_are_refused(tmp_path: Path) -> None:
    model = ir.load(export_branching(tmp_path / "branching.onnx"))
    found = skip_cut(model.graph, model.graph.inputs[0], model.graph.outputs[0])
    assert isinstance(found, Mismatch)
    assert "its body" in found.reason


def test_two_heads_are_pruned_first(tmp_path: Path) -> None:
    spec = f'{SAMPLING}\n[outputs]\nprediction = "noise"\n'
    with pytest.raises(NotApplicable, match=r"encoder-reuse: 'auxiliary\.0' would be"):
        grafted(tmp_path, "encoder-reuse", TWO_HEADS, spec)
