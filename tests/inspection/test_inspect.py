"""`graftline inspect` in a terminal: the first screen, one pass, and widths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from graftline import optimize
from graftline.bundle.reader import COSTS, Bundle
from graftline.commands import screen
from graftline.inspection.opening import read_graph
from graftline.passes.pipeline.graft import BLOCK, ROLE
from tests.commands.calling import call, refused
from tests.kinds.latent_decoders import write
from tests.kinds.recognisers import PARAFORMER


@pytest.fixture
def unmeasured(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The bundle, without the costs that other tests of this process may have measured."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy.graft", ignore=lambda *_: {COSTS})


def test_the_first_screen_answers_what_it_is(unmeasured: Path) -> None:
    first = call("inspect", unmeasured).stdout.split("how it was made")[0]
    for part in (
        "decoder of", "2 blocks", "ort-cpu, fp32", "kv-cache", "prompt-lookup", "row-invariant",
        "held", "not measured; `graftline run`", "KiB",
    ):  # fmt: skip
        assert part in first, part
    assert "canonicalize" not in first, "the front grafts nothing"


def test_speed_is_told_once_it_is_measured(unmeasured: Path, tmp_path: Path) -> None:
    from graftline.runtimes.machine import machine

    table = {"1": 10.0, "8": 12.0, "32": 20.0}
    costs = {"chain": table, "tree": table, "far": {}}
    bundle = Bundle.open(unmeasured, verify=False)
    for key in (f"{machine()} threads=2 onnxruntime=1", "Another machine threads=2 onnxruntime=1"):
        assert bundle.write_costs(key, costs)
    told = call("inspect", unmeasured).stdout
    assert "100.0 tokens/s without drafts, 10.0 ms a step; up to" in told
    assert call("inspect", unmeasured, "--html", tmp_path / "p.html").exit_code == 0
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "Another machine" in page
    assert '"here":true' in page


def test_one_pass_is_told_where_and_by_which_laws(tiny_bundle: Path) -> None:
    shown = call("inspect", tiny_bundle, "--pass", "kv-cache", "--stage", "canonical").stdout
    assert "blocks 0–1" in shown
    assert "TensorScatter" in shown
    assert "neutral" in shown
    found = json.loads(call("inspect", tiny_bundle, "--pass", "kv-cache", "--json").stdout)
    assert found["rows"][0]["nodes_after"] > found["rows"][0]["nodes_before"]
    assert {law["graft"] for law in found["laws"]} == {"kv-cache"}
    told = refused("inspect", tiny_bundle, "--pass", "kv-cash")
    assert "did you mean 'kv-cache'" in told
    graph = tiny_bundle / "canonical.onnx"
    assert "TensorScatter" in call("inspect", graph, "--pass", "kv-cache").stdout


def test_netron_shows_the_block_of_every_node(tiny_bundle: Path) -> None:
    """By the metadata in the files themselves."""
    for name in ("canonical", "ort-cpu", "chains", "rows-2"):
        graph = read_graph(tiny_bundle / f"{name}.onnx").graph
        assert not [n.name for n in graph if BLOCK not in n.metadata_props], name
        assert {n.metadata_props[ROLE] for n in graph if ROLE in n.metadata_props}


def test_everything_fits_a_hundred_columns(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "console", lambda: Console(width=100, highlight=False))
    for option in ((), ("--pass", "lower-ort"), ("--nodes", "0")):
        lines = call("inspect", tiny_bundle, *option).stdout.splitlines()
        assert len(lines) > 5
        assert max(len(line) for line in lines) <= 100


def test_bad_input_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert "no such bundle" in refused("inspect", tmp_path / "none", "--html", page)
    (tmp_path / "empty").mkdir()
    assert "not a bundle" in refused("inspect", tmp_path / "empty", "--html", page)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    assert "not an ONNX graph" in refused("inspect", tmp_path / "broken.onnx", "--html", page)
    copy = tmp_path / "copy.graft"
    shutil.copytree(tiny_bundle, copy)
    (copy / "canonical.onnx").write_bytes(b"no graph")
    assert "canonical.onnx has 8 bytes" in refused("inspect", copy, "--html", page)
    (copy / "manifest.json").write_text("{", encoding="utf-8")
    assert "manifest.json" in refused("inspect", copy, "--html", page)
    assert not page.exists()
    nowhere = tmp_path / "none" / "page.html"
    assert "cannot be written" in refused("inspect", tiny_bundle, "--html", nowhere)


def test_a_host_that_runs_once_has_no_rows_and_no_speed(tmp_path: Path) -> None:
    host = write(PARAFORMER, tmp_path / "x.onnx")
    made = optimize(host, tmp_path / "x.graft", recipe="paraformer")
    shown = call("inspect", made.path).output
    assert "recogniser of x.onnx" in shown
    assert "for the recipe paraformer" in shown
    assert "fast here" not in shown
    assert "row-invariant" not in shown
    done = call("inspect", made.path, "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    data = (tmp_path / "page.html").read_text(encoding="utf-8").partition("<script>")[0]
    assert "plain, here" not in data
    assert '"tree":' not in data
    assert '"costs":' not in data
    assert 'KiB"' in data, "its size"
