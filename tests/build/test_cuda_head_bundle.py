"""Draft heads for ort-cuda: built and proven without a GPU, and drafted with by the same code on
the CPU provider."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.runtimes.ort.cuda import SESSIONS, CudaSession
from graftline.runtimes.ort.features import CudaFeatureSession
from tests.build.test_eagle_bundle import head_files
from tests.free_engine import free
from tests.markov_host import HIDDEN, VOCABULARY
from tests.medusa_files import seeded, write_safe

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session of ort-cuda, over the CPU provider."""
    monkeypatch.setitem(SESSIONS, "ort-cuda", partial(CudaSession, device="cpu"))  # type: ignore[arg-type]


def head_of(kind: str, folder: Path) -> str:
    if kind == "eagle":
        return str(head_files(folder / "head"))
    return str(write_safe(folder / "head", seeded(HIDDEN, VOCABULARY, heads=4, layers=2)))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("medusa", "fp16"), ("eagle", "fp32")]
)
def test_heads_draft_on_the_targets_device(
    kind: str, dtype: str, wide_checkpoint: Path, tmp_path: Path, on_cpu: None
) -> None:
    out = tmp_path / "gpu.graft"
    head = head_of(kind, tmp_path)
    bundle = optimize(wide_checkpoint, out, head=head, target="ort-cuda", dtype=dtype)
    stage = bundle.manifest.stages["head.0"]
    low = "" if dtype == "fp32" else f",dtype={dtype}"
    assert stage.pipeline.endswith(f"lower-ort{{provider=cuda{low}}}")
    assert stage.dtype == dtype
    laws = {(w.graft, w.law): w.status for w in bundle.manifest.laws if w.owner == "head.0"}
    assert laws["head.0", "whole"] == "held"
    engine = free(out)
    heads: Any = engine.resources.head()
    if kind == "eagle":
        assert isinstance(heads.session, CudaFeatureSession)
    asked: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}
    plain = [engine.generate(p, recipe="plain", **asked).tokens for p in PROMPTS]
    found = [engine.generate(p, **asked) for p in PROMPTS]
    assert [r.tokens for r in found] == plain
    assert sum(r.stats.drafted for r in found) > 100


def test_a_bundle_is_checked_where_bf16_cannot_run(wide_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu.graft"
    head = head_of("medusa", tmp_path)
    bundle = optimize(wide_checkpoint, out, head=head, target="ort-cuda", dtype="bf16")
    laws = {(w.graft, w.law): w.text for w in bundle.manifest.laws if w.owner == "head.0"}
    assert laws["head.0", "whole"] == "not run: ONNX Runtime's CPU has no bf16"
    assert check(out).holds
