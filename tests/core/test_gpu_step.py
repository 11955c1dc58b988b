"""tests/bench/gpu_step.py: its dry run goes every way that a GPU's run goes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench.gpu_step", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_dry_run_measures_every_row(tmp_path: Path) -> None:
    from graftline.plugins import PLUGINS

    done = script("--dry-run", "--out", tmp_path / "out.md")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "not measured" not in text
    assert "WRONG" not in text
    assert "| NO |" not in text
    assert all(f"| {name} |" in text for name in PLUGINS), "a kernel is not compared"
    for title in ("TreeAttention", "KVCommit", "TreeVerify", "ort-cuda: one step, fp16"):
        assert f"## {title}\n" in text
    for recipe in ("plain", "token-recycling"):
        row = next(x for x in text.splitlines() if x.startswith(f"| dry shape | {recipe} |"))
        assert row.endswith("| - | - | yes |"), "speculation changed the tokens"


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = script()
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA GPU here" in done.stderr or "triton is not installed" in done.stderr


def test_a_row_that_fails_leaves_its_reason_and_the_next_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.bench.gpu_timing import Budget, Table

    def broken() -> list[object]:
        raise RuntimeError("out of | memory\nand a long trace")

    table = Table("Some", ("case", "µs", "equal"), Budget(60))
    table.row(["first"], broken)
    table.row(["second"], lambda: [12.345, "yes"])
    late = Table("Late", ("case", "µs"), Budget(0))
    late.row(["third"], lambda: [1.0])
    lines = table.text.splitlines()
    assert "| first | not measured: RuntimeError: out of / memory |  |" in lines
    assert "| second | 12.3 | yes |" in lines
    assert "out of time" in late.text
    assert (table.failed, late.failed) == (1, 1)
    assert "second" in capsys.readouterr().out


def test_timing_on_a_gpu_divides_by_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of paper on which one launch takes 7 microseconds."""
    from tests.bench import gpu_timing

    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, other: Any) -> float:
            return (other.at - self.at) / 1e3

    def launch() -> None:
        clock[0] += 7.0

    monkeypatch.setattr(gpu_timing.torch.cuda, "Event", Event)
    monkeypatch.setattr(gpu_timing.torch.cuda, "synchronize", lambda: None)
    timer = gpu_timing.Timer("cuda")
    assert timer.events({"ours": [launch, launch]})["ours"] == pytest.approx(7.0)
    assert gpu_timing.Timer("cpu").events({"ours": [launch]}) == {"ours": None}


def test_heads_are_measured_each_way_they_can_be_asked(
    wide_checkpoint: Path, tmp_path: Path
) -> None:
    """On ort-cpu, which goes the same ways; and a way that cannot be gone says why."""
    from tests.bench.gpu_heads import heads, ways
    from tests.bench.gpu_sessions import DRY_SCALE
    from tests.bench.gpu_timing import Budget
    from tests.eagle_drafts import head_files
    from tests.markov_host import HIDDEN, VOCABULARY
    from tests.medusa_files import seeded, write_safe

    medusa = write_safe(tmp_path / "medusa", seeded(HIDDEN, VOCABULARY))
    eagle = head_files(tmp_path / "eagle")
    over = [("ort-cpu", "fp32", "fused"), ("ort-cuda", "fp16", "fused")]
    files = [medusa, eagle]
    table = heads(wide_checkpoint, files, DRY_SCALE, Budget(60), over, [3, 4], real=False)
    lines = table.text.splitlines()
    for name in ("medusa", "eagle"):
        row = next(line for line in lines if line.startswith(f"| {name} | ort-cpu | fused |"))
        assert row.endswith("| yes |"), row
    assert any("ort-cuda | fused | not measured: GraftlineError" in line for line in lines), lines
    assert [way[2] for way in ways()] == ["host", "host", "fused"]
