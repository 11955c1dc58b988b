"""Draft heads in a bundle for TensorRT-RTX: engines of their own, or within the fused step's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))

from stand_in_device import StandInDevice

import graftline
from graftline.build.check import check
from graftline.bundle.pack import pack
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import BackendError, GraftlineError
from graftline.runtimes.trt import load as trt_load
from graftline.runtimes.trt.plan import EnginePlan, Here
from tests.eagle_files import write_eagle3
from tests.hydra_files import seeded_sequence, write_hydra
from tests.markov_host import HIDDEN, VOCABULARY
from tests.medusa_files import seeded, write_safe

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")

TARGET = "trt-rtx:sm89"
SMALL = "rows=8,chunk=16,capacity=256"
PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-heads")


@pytest.fixture(scope="module")
def medusa(folder: Path) -> str:
    return str(write_safe(folder / "v1", seeded(HIDDEN, VOCABULARY)))


@pytest.fixture(scope="module")
def beside(wide_checkpoint: Path, folder: Path, medusa: str) -> Bundle:
    out = folder / "beside.graft"
    return graftline.optimize(
        wide_checkpoint, out, head=medusa, target=TARGET, dtype="fp16", engine=SMALL
    )


@pytest.fixture(scope="module")
def within(wide_checkpoint: Path, folder: Path, medusa: str) -> Bundle:
    out = folder / "within.graft"
    return graftline.optimize(
        wide_checkpoint, out, head=medusa, target=TARGET, dtype="fp32", step="fused", engine=SMALL
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the GPU itself, for which the engines' graphs on this machine stand in."""
    opened: list[tuple[EnginePlan, Path, Path]] = []

    def device(engine: object) -> StandInDevice:
        plan, _, graph = opened[-1]
        manifest = Bundle.open(graph.parent, verify=False).manifest
        return StandInDevice(graph, manifest.stages[plan.graph].ports, plan.profiles, 1 << 25)

    def look(name: str) -> Here:
        import tensorrt_rtx

        return Here(89, "", {"tensorrt-rtx-cu13": str(tensorrt_rtx.__version__)})

    monkeypatch.setattr(trt_load, "look", look)
    monkeypatch.setattr(trt_load, "TrtEngine", lambda *given: opened.append(given))
    monkeypatch.setattr(trt_load, "CudaDevice", device)


def test_heads_have_an_engine_of_their_own(beside: Bundle) -> None:
    manifest = beside.manifest
    assert [where for where, _ in manifest.built()] == ["engine", "heads"]
    (row,) = manifest.extra["heads"]
    assert (row["graph"], row["target"]) == ("head.0", TARGET)
    assert beside.file(row["file"]).stat().st_size == row["size"]
    assert row["profiles"]["decode.1"] == {"hidden": [[1, 1, HIDDEN]] * 3}
    stage = manifest.stages["head.0"]
    assert stage.pipeline == "draft-heads{topk=10} | lower-tensorrt{capacity=256}"
    assert stage.dtype == "fp16"
    laws = {(w.graft, w.law): w for w in manifest.laws if w.owner == "head.0"}
    whole = laws["head.0", "whole"]
    assert 0 < (whole.value or 0) <= (whole.limit or 0) < 3e-2, "as fp16 rounds"
    assert check(beside.path).holds
    shown = CliRunner().invoke(app, ["inspect", str(beside.path)], terminal_width=300).stdout
    assert "the graph head.0" in shown


def test_they_travel_with_a_packed_bundle(beside: Bundle, folder: Path) -> None:
    packed = Bundle.open(pack(beside.path, folder / "packed.graft").path)
    (row,) = packed.manifest.extra["heads"]
    assert packed.file(row["file"]).read_bytes() == beside.file(row["file"]).read_bytes()


@pytest.mark.slow
def test_a_fused_step_has_its_heads_within(within: Bundle) -> None:
    manifest = within.manifest
    assert [where for where, _ in manifest.built()] == ["engine"]
    engine = manifest.extra["engine"]
    assert engine["graph"] == "fused"
    assert engine["profiles"]["decode.8"]["template.depths"] == [[8]] * 3
    assert "--step fused" in manifest.rebuild
    laws = {(law.graft.partition("{")[0], law.law) for law in manifest.laws}
    assert {("fuse-heads", "drafted-by-heads"), ("lower-tensorrt", "deferred")} <= laws
    assert check(within.path).holds


@pytest.mark.parametrize(
    ("where", "way"),
    [("beside", "medusa"), pytest.param("within", "fused: medusa", marks=pytest.mark.slow)],
)
def test_it_drafts_and_gives_plains_tokens(
    where: str, way: str, request: pytest.FixtureRequest, stand_in: None
) -> None:
    bundle: Bundle = request.getfixturevalue(where)
    engine = graftline.load(bundle.path)
    asked: dict[str, Any] = {"max_new_tokens": 16, "ignore_eos": True}
    plain = [engine.generate(p, recipe="plain", step="host", **asked) for p in PROMPTS]
    found = [engine.generate(p, **asked) for p in PROMPTS]
    assert [r.tokens for r in found] == [r.tokens for r in plain]  # type: ignore[union-attr]
    assert way in found[0].stats.controller  # type: ignore[union-attr]


def test_sequential_heads_have_an_engine_each(wide_checkpoint: Path, folder: Path) -> None:
    head = str(write_hydra(folder / "hydra", seeded_sequence(HIDDEN, VOCABULARY, heads=2)))
    bundle = graftline.optimize(
        wide_checkpoint, folder / "hydra.graft", head=head, target=TARGET, engine=SMALL
    )
    rows = bundle.manifest.extra["heads"]
    assert [row["graph"] for row in rows] == ["head.0", "head.1"]
    assert [row["profiles"]["decode.1"]["tokens"] for row in rows] == [[[1, 1, 1]] * 3,
                                                                      [[1, 1, 2]] * 3]  # fmt: skip


def test_what_no_engine_does_is_refused_in_a_line(
    wide_checkpoint: Path, medusa: str, tmp_path: Path
) -> None:
    masked = str(write_eagle3(tmp_path / "peagle", HIDDEN, VOCABULARY, (0, 1), mask=True))
    for options, message in (
        ({"head": masked}, "values of its own that is not EAGLE's, which no engine of"),
        ({"head": f"{medusa}:int8"}, "takes heads of fp32, fp16, bf16, not int8"),
        ({"head": masked, "step": "fused"}, "medusa or eagle, not by p-eagle; use --step host"),
        ({"head": f"{medusa}:fp32", "step": "fused"}, "in fp16 where the target is fp16, not in"),
    ):
        with pytest.raises((GraftlineError, BackendError), match=message) as caught:
            graftline.optimize(
                wide_checkpoint, tmp_path / "out", target=TARGET, dtype="fp16", **options
            )
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
