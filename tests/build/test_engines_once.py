"""Hosts that run once as TensorRT engines: built here, proven on the graphs they are built from.

An engine cannot be run without its GPU, for which its graph on this machine stands in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))

from stand_in_device import StandInDevice

import graftline
from graftline.build.check import check
from graftline.build.engines import EngineRequest
from graftline.build.tensorrt.target import gpu_capability
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import BackendError, GraftlineError, RequestError
from graftline.runtimes.one_pass.engine import DecodeEngine
from graftline.runtimes.trt import load as trt_load
from graftline.runtimes.trt.plan import EnginePlan, Here
from tests.kinds.dags import FIXED
from tests.kinds.latent_decoders import CONVERTER, UPSCALER, VOCODER, model_of, write
from tests.kinds.recognisers import CPPD, PARAFORMER
from tests.kinds.samplers import SAMPLING, write_sampler

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
TARGET = "trt-rtx:sm89"
SPEC = f"{SAMPLING}\n[decoder]\ngraph = 'decoder.onnx'\nscale = 0.5\n"
LOOP = {"passes": "collapse-loop | join", "steps": (1, 2)}
SIZES = "batch=2,size.H=8..16,size.W=16"


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("sampler")
    graph, spec = write_sampler(folder, spec=SPEC)
    given: dict[str, Any] = {"spec": spec, "target": TARGET, "dtype": "fp16", "engine": SIZES}
    return graftline.optimize(graph, folder / "fp16.graft", **LOOP, **given)


def opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[DecodeEngine, list[Any]]:
    """A bundle on devices that stand in for the GPU, one for each engine that is opened."""
    devices = list[Any]()

    def device(engine: tuple[EnginePlan, Path, Path]) -> StandInDevice:
        plan, _, graph = engine
        ports = bundle.manifest.stages[plan.graph].ports
        devices.append(StandInDevice(graph, ports, plan.profiles))
        return devices[-1]

    library, version = bundle.manifest.extra["engine"]["library"].split()
    monkeypatch.setattr(trt_load, "look", lambda name: Here(89, "", {library: version}))
    monkeypatch.setattr(trt_load, "TrtEngine", lambda *given: given)
    monkeypatch.setattr(trt_load, "CudaDevice", device)
    return graftline.load_decoder(bundle.path), devices


def proven(bundle: Bundle) -> dict[tuple[str, str], Any]:
    return {(row.graft.partition("{")[0], row.law): row for row in bundle.manifest.laws}


def test_noise_to_image_is_an_engine_for_each_number_of_steps(sampler: Bundle) -> None:
    manifest = sampler.manifest
    rows = [row for _, row in manifest.built()]
    assert [row["graph"] for row in rows] == [TARGET, "steps-2"]
    for row in rows:
        assert sampler.file(row["file"]).stat().st_size == row["size"] > 10_000
        assert dict(row["profiles"]) == {
            "whole": {
                "noise": [[1, 4, 8, 16], [2, 4, 16, 16], [2, 4, 16, 16]],
                "condition.0": [[1, 3, 6], [2, 3, 6], [2, 3, 6]],
            }
        }
    assert {(p.name, p.dtype) for p in manifest.main.ports} == {
        ("noise", "float32"), ("condition.0", "float32"), ("decoded", "float32")
    }  # fmt: skip
    assert manifest.main.facts.dtype == "float16"
    assert manifest.rebuild.endswith(f"--steps 1,2 --target {TARGET} --engine {SIZES}")


def test_the_graphs_of_the_engines_are_proven(sampler: Bundle) -> None:
    laws = proven(sampler)
    for key in ((TARGET, "whole"), ("steps-2", "form"), ("lower-tensorrt", "neutral")):
        assert laws[key].status == "held"
        assert 1e-5 < laws[key].value <= laws[key].limit == 2e-2, "as fp16 rounds"
    assert laws["export", "checkpoint"].limit == 3e-5, "which fp16 has no part in"


@pytest.mark.skipif(gpu_capability() is not None, reason="this machine has a GPU")
def test_a_bundle_is_checked_but_not_run(sampler: Bundle) -> None:
    report = check(sampler.path)
    assert report.holds, report.findings
    assert report.findings[-1].found == "not compared: the engine runs on its GPU only"
    with pytest.raises(BackendError, match=r"no NVIDIA GPU or driver here .* --engine batch=2"):
        graftline.load_decoder(sampler.path)


def test_a_bundle_is_opened_and_makes_images(
    sampler: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, spec = write_sampler(tmp_path, spec=SPEC)
    fp32 = graftline.load_decoder(
        graftline.optimize(graph, tmp_path / "fp32.graft", spec=spec, **LOOP).path
    )
    engine, (device,) = opened(sampler, monkeypatch)
    random = np.random.default_rng(0)
    noise, text = (random.standard_normal(s).astype("f4") for s in ((2, 4, 8, 16), (2, 3, 6)))
    for turn in range(3):
        got = engine.decode(noise + turn, condition_0=text)
        expected = fp32.decode(noise + turn, condition_0=text)
        assert 0 < np.abs(got - expected).max() < 2e-2 * np.abs(expected).max(), "as fp16 rounds"
    assert device.launches == 2, "of one shape: recorded after the first"
    held = sum(device.live.values())
    assert engine.decode(noise[:1], condition_0=text[:1]).shape == (1, 3, 16, 32)
    assert sum(device.live.values()) == held / 2, "memory of another shape is given back"
    two, expected = (e.decode(noise, steps=2, condition_0=text) for e in (engine, fp32))
    assert np.abs(two - expected).max() < 2e-2 * np.abs(expected).max()
    with pytest.raises(RequestError, match=r"noise .* \[2, 4, 32, 16\], and .* to \[2, 4, 16, 16"):
        engine.decode(np.zeros((2, 4, 32, 16), "f4"), condition_0=text)


def test_windows_of_a_decoder_run_in_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = graftline.optimize(
        write(VOCODER, tmp_path / "host.onnx"), tmp_path / "voice.graft", target=TARGET,
        passes="window{size=24}", engine="size.N=14..24",
    )  # fmt: skip
    assert proven(bundle)[TARGET, "windowed"].limit == 1e-5
    engine, (device,) = opened(bundle, monkeypatch)
    random = np.random.default_rng(0)
    mel, who = (random.standard_normal(s).astype("f4") for s in ((1, 6, 100), (1, 4, 1)))
    made = engine.decode(mel, speaker=who)
    assert device.runs > 4
    whole = tmp_path / "whole.graft"
    expected = graftline.load_decoder(
        graftline.optimize(tmp_path / "host.onnx", whole).path
    ).decode(mel, speaker=who)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    with pytest.raises(RequestError, match=r"\[1, 6, 100\], and the engine was built for"):
        engine.decode(mel, window=0, speaker=who)


ONCE: Mapping[str, tuple[str, str, str]] = {
    "upscaler": (UPSCALER, "window", "size.H=16,size.W=16..32"),
    "converter": (CONVERTER, "overlap-smoothing{size=64,overlap=16}", "size.N=8..64"),
    "cppd": (CPPD, "", "size.W=32..64"),
    "paraformer": (PARAFORMER, "pad-positions{positions=40}", "size.T=16..64"),
    "dag": (FIXED, "best-path | pad-positions{positions=16}", ""),
}


@pytest.mark.parametrize("name", ONCE)
def test_every_kind_builds(tmp_path: Path, name: str) -> None:
    text, passes, sizes = ONCE[name]
    bundle = graftline.optimize(
        write(text, tmp_path / "host.onnx"), tmp_path / "a.graft", passes=passes,
        target="trt-rtx:sm89+sm120", dtype="fp16", engine=sizes,
    )  # fmt: skip
    assert bundle.manifest.extra["engine"]["size"] > 10_000
    assert proven(bundle)["trt-rtx:sm89+sm120", "whole"].status == "held"


def test_bf16_is_built_and_what_is_not_compared_says_so(tmp_path: Path) -> None:
    bundle = graftline.optimize(
        write(UPSCALER, tmp_path / "host.onnx"), tmp_path / "a.graft", passes="window",
        target=TARGET, dtype="bf16", engine="size.H=16,size.W=16",
    )  # fmt: skip
    laws = proven(bundle)
    assert laws["lower-tensorrt", "neutral"].status == "held"
    assert laws[TARGET, "whole"].text == "not run: ONNX Runtime's CPU has no bf16"
    assert (TARGET, "windowed") not in laws


BITS = UPSCALER.replace(
    "h2 = Add (h0, h1)",
    "i = Cast <to = 6> (h0)\n  n = BitwiseNot (i)\n  f = Cast <to = 1> (n)\n  h2 = Add (f, h1)",
)
REFUSED = [
    (UPSCALER, "", r"latents 'latents' \[B, 3, H, W\]: say how large H is with --engine size.H=64"),
    (UPSCALER, "size.H=16,size.Hh=16", "--engine size.Hh: no input has it; did you mean 'H'"),
    (UPSCALER, "rows=8", "--engine rows is for decoders of text"),
    (UPSCALER, "capacity=64", "--engine capacity is for decoders of text"),
    (BITS, "size.H=16,size.W=16", "TensorRT's importer has no BitwiseNot .looked at: "),
    (PARAFORMER, "size.T=16", "has them with --passes pad-positions .looked at: scores"),
]


@pytest.mark.parametrize(("text", "options", "message"), REFUSED)
def test_what_cannot_be_built_is_refused(
    tmp_path: Path, text: str, options: str, message: str
) -> None:
    file = write(text, tmp_path / "host.onnx")
    with pytest.raises(GraftlineError, match=message):
        graftline.optimize(file, tmp_path / "a.graft", target=TARGET, engine=options)
    assert [p.name for p in tmp_path.iterdir()] == ["host.onnx"]


def test_a_host_of_16_bits_keeps_its_own(tmp_path: Path) -> None:
    model = model_of(UPSCALER.replace("float[", "float16["), dtype="float16")
    ir.save(model, file := tmp_path / "host.onnx")
    given: dict[str, Any] = {"target": TARGET, "engine": "size.H=16,size.W=16"}
    with pytest.raises(GraftlineError, match="computes in float16, not in bfloat16; use --dtype f"):
        graftline.optimize(file, tmp_path / "a.graft", dtype="bf16", **given)
    bundle = graftline.optimize(file, tmp_path / "a.graft", dtype="fp16", **given)
    assert {p.dtype for p in bundle.manifest.main.ports} == {"float16"}


def test_options_are_read() -> None:
    sizes = EngineRequest.parse(TARGET, "fp32", "size.H=64,size.W=8..16,size.T=8..9..32").options
    assert sizes.sizes == {"H": (64, 64, 64), "W": (8, 16, 16), "T": (8, 9, 32)}
    for text in ("size.H=x", "size.H=1..2..3..4", "size.H="):
        with pytest.raises(BackendError, match="takes a size or a range as 32"):
            EngineRequest.parse(TARGET, "fp32", text)
    with pytest.raises(BackendError, match=r"size\.H is 9\.\.8\.\.8; sizes rise from 1 on"):
        EngineRequest.parse(TARGET, "fp32", "size.H=9..8")
    with pytest.raises(BackendError, match=r"--engine size\.H is for hosts that run once"):
        replace(EngineRequest.parse(TARGET, "fp32", "size.H=9")).check_steps()


def test_inspect_shows_the_engines(sampler: Bundle) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(sampler.path)]).stdout
    assert "engines/trt-rtx-sm89.engine" in shown
    assert "engines/steps-2-trt-rtx-sm89.engine" in shown
    assert "noise [1, 4, 8, 16] to [2, 4, 16, 16]" in shown
    assert "2 rows" in shown
