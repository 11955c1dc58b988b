"""`--target trt-rtx:...`: what is refused before anything is read, and the bundle that results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))

from stand_in_device import StandInDevice

import graftline
from graftline.build.check import check
from graftline.build.engines import EngineRequest, is_engine
from graftline.build.tensorrt.target import gpu_capability
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import BackendError, GraftlineError
from graftline.runtimes.trt import load as trt_load
from graftline.runtimes.trt.plan import EnginePlan, Here

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")

TARGET = "trt-rtx:sm89+sm120"
SMALL = "rows=8,chunk=16,capacity=256"


@pytest.fixture(scope="module")
def fused_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("engines") / "fused.graft"
    return graftline.optimize(
        tiny_checkpoint, out, recipe="token-recycling", target="trt-rtx:sm89", step="fused",
        engine="chunk=16,capacity=256",
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("engines") / "fp16.graft"
    return graftline.optimize(tiny_checkpoint, out, target=TARGET, dtype="fp16", engine=SMALL)


def test_the_bundle_holds_the_engine_and_what_it_was_built_from(engine_bundle: Bundle) -> None:
    manifest = engine_bundle.manifest
    engine = manifest.extra["engine"]
    assert engine_bundle.file(engine["file"]).stat().st_size == engine["size"]
    assert engine["target"] == manifest.target == TARGET
    assert list(engine["profiles"]) == ["decode.8", "prefill"]
    assert set(manifest.stages) == {"export", "canonical", TARGET}
    assert manifest.stages[TARGET].file == "trt-rtx-sm89+sm120.onnx"
    caches = [p for p in manifest.stages[TARGET].ports if p.mirror is not None]
    assert {(p.dtype, p.shape[2]) for p in caches} == {("float16", 256)}
    assert manifest.rebuild.endswith(f"--dtype fp16 --target {TARGET} --engine {SMALL}")


def test_the_graph_of_the_engine_is_proven_and_its_exactness_is_not_claimed(
    engine_bundle: Bundle,
) -> None:
    proven = {(law.graft, law.law): law for law in engine_bundle.manifest.laws}
    whole = proven[TARGET, "whole"]
    assert whole.status == "held"
    assert 0 < (whole.value or 0) <= (whole.limit or 0) < 2e-2, "as fp16 rounds"
    assert "a tree" in whole.what
    assert engine_bundle.manifest.exactness is None
    quality = engine_bundle.manifest.quality
    assert quality["perplexity fp16"] == pytest.approx(quality["perplexity fp32"], rel=1e-2)


@pytest.mark.skipif(gpu_capability() is not None, reason="this machine has a GPU")
def test_a_bundle_with_an_engine_is_checked_but_not_run(engine_bundle: Bundle) -> None:
    report = check(engine_bundle.path)
    assert report.holds, report.findings
    assert report.findings[-1].found == "not compared: the engine runs on its GPU only"
    with pytest.raises(BackendError, match=r"no NVIDIA GPU or driver here .* --engine rows=8"):
        graftline.load(engine_bundle.path)


def test_a_bundle_with_an_engine_is_loaded_and_generates(
    engine_bundle: Bundle, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the GPU itself, for which the engine's graph on this machine stands in."""
    manifest = engine_bundle.manifest
    library, version = manifest.extra["engine"]["library"].split()
    opened: list[tuple[EnginePlan, Path, Path]] = []

    def device(engine: object) -> StandInDevice:
        plan, _, graph = opened[-1]
        return StandInDevice(graph, manifest.stages[TARGET].ports, plan.profiles, 1 << 25)

    monkeypatch.setattr(trt_load, "look", lambda name: Here(120, "", {library: version}))
    monkeypatch.setattr(trt_load, "TrtEngine", lambda *given: opened.append(given))
    monkeypatch.setattr(trt_load, "CudaDevice", device)
    with pytest.raises(BackendError, match="capacity of 249 was asked for, and 256 slots were"):
        graftline.load(engine_bundle.path, capacity=249)
    assert opened == [], "refused before the engine was opened"
    engine = graftline.load(engine_bundle.path)
    assert engine.session.capacity == 248
    prompt = "one two one two one two"
    found = engine.generate(prompt, raw=True, max_new_tokens=12)
    wanted = graftline.load(tiny_bundle).generate(prompt, raw=True, max_new_tokens=12)
    assert found.tokens == wanted.tokens
    assert len(list((engine_bundle.path / "costs").iterdir())) == 1
    assert opened[0][1:] == (
        engine_bundle.path / manifest.extra["engine"]["file"], engine_bundle.graph(TARGET)
    )  # fmt: skip
    both = engine.generate([prompt, prompt], raw=True, max_new_tokens=12)
    assert [r.tokens for r in both] == [wanted.tokens] * 2, "built for one: the other waits"
    with pytest.raises(BackendError, match=r"built for 1 sequences at once, not 2; .*batch=2"):
        engine.session.reset(2)


def test_an_engine_of_fused_steps(
    fused_bundle: Bundle, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built from the fused graph, with the recipe's tree in a step; it steps so unless told not to.
    """
    manifest = fused_bundle.manifest
    engine = manifest.extra["engine"]
    assert engine["graph"] == "fused"
    assert list(engine["profiles"]) == ["decode.32", "prefill"]
    laws = {(law.graft.partition("{")[0], law.law) for law in manifest.laws}
    assert {("fuse-verify", "fused"), ("fuse-draft", "drafted")} <= laws
    assert ("lower-tensorrt", "deferred") in laws
    assert manifest.rebuild.endswith(
        "--step fused --target trt-rtx:sm89 --engine chunk=16,capacity=256"
    )
    assert check(fused_bundle.path).holds
    library, version = engine["library"].split()
    plan = EnginePlan.read(manifest)
    device = StandInDevice(
        fused_bundle.graph("fused"), manifest.stages["fused"].ports, plan.profiles, 1 << 25
    )
    monkeypatch.setattr(trt_load, "look", lambda name: Here(89, "", {library: version}))
    monkeypatch.setattr(trt_load, "TrtEngine", lambda *given: None)
    monkeypatch.setattr(trt_load, "CudaDevice", lambda engine: device)
    loaded = graftline.load(fused_bundle.path)
    assert loaded.step == "fused"
    prompt = "one two one two one two"
    found = loaded.generate(prompt, raw=True, max_new_tokens=12)
    wanted = graftline.load(tiny_bundle).generate(prompt, raw=True, max_new_tokens=12)
    assert found.tokens == wanted.tokens
    assert "fused: token-recycling, a tree of 32 rows" in found.stats.controller



def test_inspect_shows_the_engine(engine_bundle: Bundle) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(engine_bundle.path)]).stdout
    assert "engines/trt-rtx-sm89+sm120.engine" in shown
    assert "tokens [1, 1] to [1, 16]" in shown
    assert "1 sequences of 256 slots" in shown
    assert "4 of them written in place" in shown


def test_a_graph_without_a_tree_decodes_single_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = graftline.optimize(
        tiny_checkpoint,
        tmp_path / "a.graft",
        recipe="plain",
        target="trt-rtx:sm89",
        dtype="bf16",
        engine="chunk=16,capacity=256",
    )
    assert list(bundle.manifest.extra["engine"]["profiles"]) == ["decode.1", "prefill"]
    laws = {(law.graft, law.law): law.text for law in bundle.manifest.laws}
    assert laws["trt-rtx:sm89", "whole"].startswith("not run: ONNX Runtime's CPU has no bf16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "trt-rtx:sm90"}, "trt-rtx builds for no GPU 'sm90'; trt:sm90 does"),
        ({"target": "trt:sm90"}, "pip install tensorrt-cu13"),
        ({"target": TARGET, "dtype": "int4"}, "takes --dtype fp32, fp16, bf16, not 'int4'"),
        ({"target": "trt-rtx:sm75", "dtype": "bf16"}, "sm75 has no bf16"),
        ({"target": TARGET, "engine": "row=3"}, "--engine has no option 'row'; did you mean"),
        ({"target": TARGET, "engine": "rows=x"}, "--engine rows takes a whole number, not 'x'"),
        ({"target": TARGET, "engine": "rows=0"}, "rows 0 is at least 1, not 0"),
        ({"target": TARGET, "quantizer": "hqq"}, "--quantizer needs --target ort-cpu"),
        ({"target": TARGET, "draft": "int4"}, "--draft needs --target ort-cpu"),
        ({"engine": "rows=8"}, "--engine needs a TensorRT target, not ort-cpu"),
    ],
)
def test_refusals_come_before_anything_is_read(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(GraftlineError) as caught:
        graftline.optimize(tmp_path / "nowhere", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_options_are_read() -> None:
    text = "rows=1+64, batch=4,capacity=4096,version-compatible"
    request = EngineRequest.parse("trt-rtx:sm89", "fp16", text)
    assert request.lowering == "lower-tensorrt{dtype=fp16,capacity=4096}"
    assert (request.options.rows, request.options.batch) == ((1, 64), 4)
    assert request.options.version_compatible
    assert is_engine("trt:sm90")
    assert not is_engine("ort-cpu")
