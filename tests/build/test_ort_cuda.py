"""Bundles for ort-cuda: built and proven without a GPU, refused to run without one."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime
import pytest

import graftline.build.doctor as doctor
from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.build.pipelines import pipeline_of
from graftline.bundle.reader import Bundle
from graftline.errors import BackendError, GraftlineError
from graftline.runtimes.load import load
from graftline.runtimes.ort.provider import CUDA
from graftline.targets import TARGETS

WITHOUT = pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@WITHOUT
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_bundle_is_built_and_proven_without_a_gpu(
    dtype: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.graft"
    bundle = optimize(
        tiny_checkpoint, out, recipe="token-recycling", target="ort-cuda", dtype=dtype
    )
    manifest = Bundle.open(out).manifest
    assert manifest.target == "ort-cuda"
    assert manifest.exactness is None, "rows are compared on the GPU, not here"
    laws = {(r.graft, r.law): r.text for r in manifest.laws}
    assert ("not run" in laws["ort-cuda", "whole"]) == (dtype == "bf16")
    assert "argmax equal" in laws["canonical", "whole"]
    caches = {p.dtype for p in manifest.stages["ort-cuda"].ports if p.mirror is not None}
    assert caches == {{"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype]}
    assert f"--dtype {dtype} --target ort-cuda" in manifest.rebuild
    with pytest.raises(BackendError, match=r"ort-cuda: .* pip install \"graftline\[gpu\]\""):
        load(bundle.path)
    report = check(out)
    assert report.holds, report
    assert "not compared" in report.findings[-1].found


def test_precisions_are_those_of_the_target(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(GraftlineError, match="ort-cpu has no dtype 'fp16'; did you mean 'fp32'"):
        optimize(tiny_checkpoint, tmp_path / "a", dtype="fp16")
    with pytest.raises(BackendError, match="unknown target 'ort-cda'; did you"):
        optimize(tiny_checkpoint, tmp_path / "a", target="ort-cda")
    assert set(TARGETS["ort-cpu"]) < set(TARGETS["ort-cuda"])
    with pytest.raises(GraftlineError, match=r"needs .* or a TensorRT target, not"):
        optimize(
            tiny_checkpoint, tmp_path / "a", recipe="token-recycling", target="ort-cuda",
            dtype="fp16", step="fused",
        )  # fmt: skip
    assert os.listdir(tmp_path) == []


def test_on_a_gpu_quantized_weights_go_with_half_precision() -> None:
    int4 = "quantize{algorithm=gptq,block=0,head_bits=8,wide=0.41}"
    for dtype, quantize in (("int4", int4), ("int8", "quantize{bits=8}")):
        _, text = pipeline_of("plain", None, "ort-cuda", dtype, None)
        assert text.endswith(f"{quantize} | lower-ort{{provider=cuda,dtype=fp16}}")
    _, text = pipeline_of("plain", None, "ort-cuda", "int4", "hqq")
    assert "algorithm=hqq" in text


def test_doctor_tells_a_hidden_library_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_has_cuda", lambda: False)
    missing, hidden = doctor._cuda(True, False, 1), doctor._cuda(True, True, 1)
    assert missing.install == 'pip install "graftline[gpu]"'
    assert "hides it" in hidden.reason
    assert "pip uninstall -y onnxruntime " in hidden.install
    monkeypatch.setattr(doctor, "_has_cuda", lambda: True)
    assert doctor._cuda(True, True, 1).runs
    without = doctor._cuda(True, True, 0)
    assert not without.runs
    assert without.builds
    assert without.reason == doctor.NO_GPU
