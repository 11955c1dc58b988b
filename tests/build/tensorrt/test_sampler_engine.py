"""A joined sampler of one step is a graph that TensorRT-RTX builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftline.build.optimize import optimize
from graftline.build.tensorrt.builder import build
from tests.kinds import samplers
from tests.kinds.samplers import DECODER, DENOISER, SAMPLING, write_sampler

pytest.importorskip("tensorrt_rtx")
SPEC = f"{SAMPLING}\n[decoder]\ngraph = 'decoder.onnx'\nscale = 0.5\n"


def test_noise_to_image_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = DECODER.replace("[N,4,h,w]", "[1,4,16,16]").replace("[N,3,H2,W2]", "[1,3,32,32]")
    monkeypatch.setattr(samplers, "DECODER", latents)
    text = DENOISER.replace("[B,4,H,W]", "[1,4,16,16]").replace("[B", "[1")
    graph, spec = write_sampler(tmp_path, text, SPEC)
    passes = "collapse-loop{steps=1} | join"
    made = optimize(graph, tmp_path / "one.graft", passes=passes, spec=spec)
    stage = made.manifest.stages["canonical"]
    shapes = {p.name: p.shape for p in stage.ports}
    assert shapes == {
        "noise": (1, 4, 16, 16), "condition.0": (1, 3, 6), "decoded": (1, 3, 32, 32)
    }  # fmt: skip
    engine = build(made.graph("canonical"), stage.ports, "trt-rtx:sm89", tmp_path / "one.engine")
    assert engine.path.stat().st_size == engine.size > 10_000
