"""carry-chunk: a denoiser of two chunks draws one, behind the chunk before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.carry_chunk import CarryChunk
from graftline.ports import read_ports
from tests.kinds.chunks import AS_NOISY, CHUNKED, CHUNKS, CLEAN, ONE_LEVEL, SEEING
from tests.kinds.samplers import WHOLE, canonical, grafted, lines

HOSTS = {"noised": (CHUNKED, CHUNKS), "clean": (CHUNKED, CLEAN), "as noisy": (ONE_LEVEL, AS_NOISY)}


def test_before_and_after(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "carry-chunk", CHUNKED, CHUNKS)
    model, (report,) = grafted(tmp_path, "carry-chunk", CHUNKED, CHUNKS)
    held = {row.law for row in report.laws if row.status == "held"}
    assert {"neutral", "causal"} <= held
    made = lines(model)
    assert made[:9] == [
        "val_0 = Reshape(begun, per.sample)",
        "val_1 = Reshape(begun, per.latents)",
        "val_2 = Where(val_1, past_latents, latents)",
        "val_3 = Concat(val_2, latents)",
        "val_4 = Mul(past_noise, chunks.noise)",
        "val_5 = Add(past, val_4)",
        "val_6 = Where(val_0, val_5, sample)",
        "val_7 = Concat(val_6, sample)",
        "val_8 = Where(begun, chunks.noise, timestep)",
    ]
    assert made[-4:] == [
        "val_9, val_10 = Split(pair.prediction)",
        "prediction = Where(val_0, val_10, val_9)",
        "begun.next = Or(begun, bool.0d.True)",
        "past_latents.next = Identity(latents)",
    ]
    count = [sum("Conv" in line for line in lines(one)) for one in (before, model)]
    assert count == [2, 2], "one call for a chunk, whether it has one before or not"
    assert [(p.name, p.shape, p.state) for p in read_ports(model) if p.direction == "in"] == [
        ("timestep", ("B",), ""), ("latents", ("B", 4, 6), ""), ("sample", ("B", 2, 4, 8), ""),
        ("past", ("B", 2, 4, 8), "running"), ("past_latents", ("B", 4, 6), "running"),
        ("past_noise", ("B", 2, 4, 8), ""), ("begun", ("B",), "running"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_loop_is_the_one_in_numpy(tmp_path: Path, name: str, steps: int) -> None:
    """Two rows, of which the second has no chunk before, by the formulas alone."""
    text, spec = HOSTS[name]
    passes = f"carry-chunk | collapse-loop{{steps={steps}}}"
    host, feed = canonical(tmp_path, passes, text, spec)
    model = host.clone()
    reports = Pipeline.parse(passes, GRAFTS).run(model, feed)
    assert {r.status for one in reports for r in one.laws if r.law == "neutral"} == {"held"}
    random, shapes = np.random.default_rng(2), {
        p.name: [2, *p.shape[1:]] for p in read_ports(model) if p.direction == "in"
    }  # fmt: skip
    given = {n: random.standard_normal(shape).astype("f4") for n, shape in shapes.items()}  # type: ignore[arg-type]
    given["begun"] = np.asarray([True, False])
    made = run(model, given)
    np.testing.assert_allclose(made["denoised"], by_hand(host, given, name, steps), atol=2e-6)
    np.testing.assert_array_equal(made["begun.next"], [True, True])
    np.testing.assert_array_equal(made["past_latents.next"], given["latents"])


def by_hand(host: ir.Model, given: Feed, name: str, steps: int) -> np.ndarray:
    sigmas = [8.0, 0.7][:steps]
    x = sigmas[0] * given["noise"]
    for step, sigma in enumerate(sigmas):
        level = {"noised": 0.4, "clean": 0.0, "as noisy": sigma}[name]
        past = given["past"][:1] + level * given.get("past_noise", given["past"])[:1]
        front = np.concatenate([past, x[1:]])
        latents = np.concatenate([given["past_latents"][:1], given["latents"][1:]])
        feed = {
            "sample": np.concatenate([front, x], 3).astype("f4"),
            "timestep": np.full(2, sigma, "f4"),
            next(n for n in ("condition.1", "condition.0") if wide(host, n)): np.concatenate(
                [latents, given["latents"]], 1
            ),
        }
        if name != "as noisy":
            feed["condition.0"] = np.asarray([level, sigma], "f4")
        said = run(host, feed)["prediction"]
        x = np.concatenate([said[:1, ..., 8:], said[1:, ..., :8]])
        if step + 1 < steps:
            x = x + np.sqrt(sigmas[step + 1] ** 2 - 0.002**2) * given[f"fresh_noise.{step}"]
    return x


def wide(host: ir.Model, name: str) -> bool:
    return any(v.name == name and len(v.shape or ()) == 3 for v in host.graph.inputs)


def test_the_loop_carries_its_sample_on(tmp_path: Path) -> None:
    model, _ = grafted(tmp_path, "carry-chunk | collapse-loop", CHUNKED, CHUNKS)
    carried = {p.name: p.mirror for p in read_ports(model) if p.mirror}
    assert carried == {
        "denoised": "past", "past_latents.next": "past_latents", "begun.next": "begun"
    }  # fmt: skip


def test_a_chunk_behind_itself_breaks_the_neutral_law(tmp_path: Path) -> None:
    class Wrong(CarryChunk):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            first = next(n for n in model.graph if n.op_type == "Add")
            first.replace_input_with(0, next(v for v in model.graph.inputs if v.name == "sample"))

    model, feed = canonical(tmp_path, "carry-chunk", CHUNKED, CHUNKS)
    with pytest.raises(LawBroken, match="neutral"):
        Pipeline((Wrong(),)).run(model, feed)


def test_a_first_chunk_that_sees_the_second_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LawBroken, match=r"the first chunk changes .*: the network is not causal"):
        grafted(tmp_path, "carry-chunk", SEEING, CHUNKS)


ODD = CHUNKED.replace("float[B,8,6] z", "float[B,7,6] z").replace("1.0, 2.0]", "1.0, 2.29]")
LEVELS = CHUNKED.replace("float[B] earlier", "float[B,1] earlier").replace(
    "columns0 = Unsqueeze (earlier, first)", "columns0 = Mul (earlier, earlier)"
)
JOINED = f'{CHUNKS}\n[decoder]\ngraph = "decoder.onnx"\n'


@pytest.mark.parametrize(
    ("passes", "text", "spec", "message"),
    [
        ("carry-chunk", ONE_LEVEL, "", "does not know the chunks of a sample; say them"),
        ("carry-chunk", CHUNKED, CHUNKS.replace("width = 8", "width = 6"),
         "chunks.width is 6, so that a sample is 12 wide, and the graph's is .B, 2, 4, 16. float"),
        ("carry-chunk", CHUNKED.replace("16] x", "W] x").replace("16] clean", "W] clean"), CHUNKS,
         "a sample is 16 wide, and the graph's is .B, 2, 4, W."),
        ("carry-chunk", ODD, CHUNKS, r"chunks.latents 'condition.1' .B, 7, 6. float32 are not tho"),
        ("carry-chunk", LEVELS, CHUNKS, "chunks.timestep 'condition.0' .B, 1. float32 must be"),
        ("carry-chunk | carry-chunk", CHUNKED, CHUNKS, "name it once, before collapse-loop"),
        ("carry-chunk | fold-guidance", CHUNKED, CHUNKS + "[outputs]\n", "nothing to fold at gui"),
        ("carry-chunk | collapse-loop | join", CHUNKED, JOINED, "next chunk needs this one's samp"),
        ("carry-chunk | encoder-reuse", CHUNKED, CHUNKS, "keeps no features of chunks"),
        ("carry-chunk | denoise-latents", CHUNKED, CHUNKS, "scheduler consistency has no sample"),
        ("carry-chunk", CHUNKED, WHOLE.replace('"epsilon"', '"x0"') + CHUNKS.split("\n\n")[1],
         "sampling.scheduler is ddim; how noisy a chunk is"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, passes: str, text: str, spec: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, spec)
