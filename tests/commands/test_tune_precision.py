"""`graftline tune --precision`: what it measures, what it keeps, and when it leaves a bundle alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from graftline.build.optimize import optimize
from graftline.build.recheck import recheck
from graftline.bundle.manifest import Stage
from graftline.bundle.reader import Bundle
from graftline.commands import tune_precision
from graftline.errors import BundleError, GraftlineError
from graftline.facts import Facts
from graftline.files import of_source
from graftline.runtimes.load import load
from graftline.runtimes.study import frontier
from graftline.runtimes.study.frontier import Point, chosen, marked
from tests.commands.calling import call

SLOW_TO_FAST = (6.0, 5.0, 1.0, 4.0, 3.0, 2.5, 2.0)
"""Seconds by precision, in the order in which they are measured: int4 is the fastest."""


@pytest.fixture(scope="module")
def made(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("precisions") / "wide.graft"
    return optimize(wide_checkpoint, out, recipe="plain").path


@pytest.fixture
def bundle(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    seconds = cycle(SLOW_TO_FAST)
    monkeypatch.setattr(frontier, "_decode", lambda session, text: next(seconds))
    return Path(shutil.copytree(made, tmp_path / "wide.graft"))


def names_of_source(bundle: Path) -> set[str]:
    files = Bundle.open(bundle, verify=False).manifest.files
    return {Path(rel).name for rel in files if of_source(rel)}


def test_the_fastest_precision_that_loses_little_becomes_the_bundle(
    bundle: Path, made: Path
) -> None:
    result = call("tune", bundle, "--precision", "--most-loss", "1000", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["precisions"][0]["name"] == told["kept"] == "int4"
    assert {p["name"] for p in told["precisions"]} == set(tune_precision.PRECISIONS)
    assert told["changed"]
    sizes = {p["name"]: p["size"] for p in told["precisions"]}
    assert sizes["int4, only the head in int8"] < sizes["int4"] < sizes["int8"] < sizes["fp32"]
    sixth = sizes["int4, a sixth of the blocks in int8"]
    assert sizes["int4, the same with the head in int4"] < sixth <= sizes["int4"]
    new = Bundle.open(bundle)
    assert new.manifest.dtype == "int4"
    assert names_of_source(bundle) == names_of_source(made), "a remake names no file anew"
    assert "algorithm=gptq" in new.manifest.main.pipeline
    assert new.manifest.quality.keys() == {"perplexity int4", "perplexity fp32"}
    assert new.manifest.rebuild.endswith("--precision")
    assert len(load(bundle).generate("ab ab", max_new_tokens=4, ignore_eos=True).tokens) == 4
    again = call("tune", bundle, "--precision", "--most-loss", "1000")
    assert again.exit_code == 0, again.output
    assert "is int4 already" in again.stdout
    assert any(r.law == "reproducible" and r.status == "held" for r in recheck(new, print))


def test_where_everything_loses_too_much_the_bundle_stays(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = call("tune", bundle, "--precision", "--most-loss", "0", "-q")
    assert result.exit_code == 0, result.output
    full = Bundle.open(bundle).manifest
    assert full.dtype in ("fp32", "int8", "int4")
    if full.dtype == "fp32":
        assert (bundle / "manifest.json").read_bytes() == before
        assert "is fp32 already" in result.stdout


@pytest.mark.parametrize("place", ["measure", "_opened", "_remake"])
def test_an_interrupt_leaves_the_bundle_and_nothing_beside_it(
    bundle: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*")}

    def interrupt(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(frontier if place == "measure" else tune_precision, place, interrupt)
    result = call("tune", bundle, "--precision", "--most-loss", "1000", "-q")
    assert result.exit_code != 0
    assert {p: p.stat().st_mtime_ns for p in bundle.rglob("*")} == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def _changed(bundle: Path, **fields: Any) -> Bundle:
    opened = Bundle.open(bundle)
    opened.manifest = replace(opened.manifest, **fields)
    return opened


EXPORT = Stage("export", "e.onnx", (), Facts())
DRAFT = Stage("engine", "d.onnx", (), Facts(), made_of="export", owner="draft")


def test_a_bundle_without_its_source_weights_is_refused_in_one_line(bundle: Path) -> None:
    stages = {"ort-cpu": Bundle.open(bundle).manifest.main}
    message = "without its source weights.*graftline optimize"
    with pytest.raises(BundleError, match=message) as caught:
        tune_precision._check(_changed(bundle, stages=stages))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "trt-rtx:sm89"}, "--precision tunes ort-cpu bundles"),
        ({"stages": {"export": EXPORT, "draft": DRAFT}}, "has the stage draft, which shares"),
    ],
)
def test_bundles_whose_precision_cannot_be_changed_are_refused(
    bundle: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraftlineError, match=message):
        tune_precision._check(_changed(bundle, **fields))


def test_bad_options_are_one_line(bundle: Path, tmp_path: Path) -> None:
    assert "--precision" in call("tune", "--help").output
    for args, message in (
        ((bundle,), "tune needs --prompts FILE, or --precision"),
        ((bundle, "--precision", "--prompts", tmp_path / "x"), "--precision reads no prompts"),
        ((tmp_path / "none", "--precision"), "none"),
    ):
        result = call("tune", *args)
        assert result.exit_code != 0
        assert message in str(result.output) + str(result.exception)


def test_the_frontier_is_what_nothing_beats() -> None:
    points = marked([
        Point("full", 10.0, 40.0, 0), Point("near", 10.1, 90.0, 0), Point("worse", 12.0, 80.0, 0),
        Point("coarse", 13.0, 120.0, 0),
    ])  # fmt: skip
    assert [(p.name, p.best) for p in points] == [
        ("coarse", True), ("near", True), ("worse", False), ("full", True),
    ]  # fmt: skip
    assert chosen(points, "full", 0.05).name == "near"
    assert chosen(points, "full", 0.4).name == "coarse"
    assert chosen(points, "full", 0.0).name == "full"
