"""denoise-latents: latents and their residual get as much noise as is asked for, and are denoised
in one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import Feed, run
from graftline.ports import read_ports
from tests.kinds.samplers import DENOISER, PYRAMID, SAMPLING, TWO_HEADS, canonical, grafted, lines

KINDS = ("epsilon", "v", "x0")
PASSES = "fold-time{t=600} | denoise-latents"


def test_before_and_after(tmp_path: Path) -> None:
    before, _ = canonical(tmp_path, "denoise-latents", spec=SAMPLING)
    model, (report,) = grafted(tmp_path, "denoise-latents", spec=SAMPLING)
    assert {row.law: row.status for row in report.laws}["neutral"] == "held"
    made, host = lines(model), lines(before)
    count = sum("Conv" in line for line in made)
    assert count == sum("Conv" in line for line in host), "one call"
    shown = [line for line in made if line not in host]
    assert sorted(line.partition(" = ")[2].partition("(")[0] for line in shown) == [
        "Add", "Add", "Add", "Conv", "Div", "Identity", "Mul", "Mul", "Mul", "Reshape", "Sqrt",
        "Sub",
    ]  # fmt: skip
    ports = {p.name: p.shape for p in read_ports(model)}
    sample = ("B", 4, "H", "W")
    assert ports == {
        "timestep": ("B",), "condition.0": ("B", 3, 6), "latents": sample, "residual": sample,
        "noise": sample, "strength": ("B",), "denoised": sample,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", ["", "clip = 0.4\n"])
def test_it_is_the_formula_by_hand(tmp_path: Path, kind: str, clip: str) -> None:
    """By the levels of noise that a variance-preserving network knows."""
    spec = SAMPLING.replace("epsilon", kind) + clip
    model, reports = grafted(tmp_path, PASSES, spec=spec)
    assert {w.status for r in reports for w in r.laws if w.law == "neutral"} == {"held"}
    host, feed = canonical(tmp_path, PASSES, spec=spec)
    random = np.random.default_rng(1)
    shape = feed["sample"].shape
    base, residual, noise = (random.standard_normal(shape).astype(np.float32) for _ in range(3))
    strength = np.asarray([0.3, 1.7], np.float32)
    share = strength[:, None, None, None]
    signal, left = 1 / np.sqrt(1 + share**2), share / np.sqrt(1 + share**2)
    x = signal * (base + residual) + left * noise
    said = run(host, feed | {"sample": x, "timestep": np.full(2, 600, np.float32)})["prediction"]
    expected = {"epsilon": (x - left * said) / signal, "v": signal * x - left * said, "x0": said}[
        kind
    ]
    given: Feed = {"latents": base, "residual": residual, "noise": noise, "strength": strength}
    got = run(model, given | {"condition.0": feed["condition.0"]})["denoised"]
    bound = 0.4 if clip else np.inf
    np.testing.assert_allclose(got, np.clip(expected, -bound, bound), rtol=2e-5, atol=2e-5)


def test_without_noise_it_is_one_call_on_the_latents(tmp_path: Path) -> None:
    spec = SAMPLING.replace("epsilon", "x0")
    model, _ = grafted(tmp_path, PASSES, spec=spec)
    host, feed = canonical(tmp_path, PASSES, spec=spec)
    zeros, noise = np.zeros_like(feed["sample"]), np.full_like(feed["sample"], 9)
    given = {"latents": feed["sample"], "residual": zeros, "noise": noise,
             "strength": np.zeros(2, np.float32), "condition.0": feed["condition.0"]}  # fmt: skip
    at = feed | {"timestep": np.full(2, 600, np.float32)}
    np.testing.assert_allclose(
        run(model, given)["denoised"], run(host, at)["prediction"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "spec", "passes", "message"),
    [
        (DENOISER, PYRAMID, "denoise-latents", "the scheduler pyramid has no sample with any"),
        (DENOISER, SAMPLING, "collapse-loop | denoise-latents", "put it before a loop and join"),
        (TWO_HEADS, f'{SAMPLING}\n[outputs]\nprediction = "noise"\n', "denoise-latents",
         "'auxiliary.0' would be of the noised sample; put prune-branch before it"),
        (DENOISER, "", "denoise-latents", "does not know what the denoiser predicts; say it with"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, text: str, spec: str, passes: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        grafted(tmp_path, passes, text, spec)
