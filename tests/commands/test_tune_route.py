"""`graftline tune --recipes self-skip`: it finds what can be skipped, and the bundle skips it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.commands import tune_route as module
from graftline.commands.tune_route import Agreement, skip_text
from graftline.evaluate import run
from graftline.models.host import Host
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.keep_parts import KEEP, keep_parts
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.laws.common import infer_shapes
from graftline.runtimes.load import load
from graftline.runtimes.study.routes import Search
from tests.commands.calling import call
from tests.passes.tiny_hosts import decoder_feed
from tests.rounding import assert_same_sums, decoder_terms
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=4)
IDLE = ("layers.1.attention.o", "layers.1.mlp.down", "layers.2.mlp.down")
"""Matrices of zeros: block 1 and the MLP of block 2 add nothing."""


class Idle(TinyCheckpoint):
    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        host = super().host(full_export, watch)
        for name in IDLE:
            held = host.model.graph.initializers[f"{name}.weight"]
            assert held.const_value is not None
            zeros = np.zeros(held.const_value.shape, np.float32)  # type: ignore[arg-type]
            held.const_value = ir.tensor(zeros, name=held.name)
        return host


@pytest.fixture
def bundle(known_checkpoints: dict[Path, Any], tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    known_checkpoints[path] = Idle(path, SPEC)
    return optimize(path, tmp_path / "skip.graft", recipe="self-skip", skip="3").path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": t}) for t in ("ab ab ab", "what is this")))
    return file


def test_what_adds_nothing_is_skipped_and_the_bundle_made_again(
    bundle: Path, prompts: Path
) -> None:
    args = ("--prompts", prompts, "--recipes", "self-skip", "--max-new-tokens", "12", "--json")
    result = call("tune", bundle, *args, "-q")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["changed"]
    assert told["skip"].startswith("layers=1,")  # and what else pays
    assert told["cost"] < 0.7
    manifest = Bundle.open(bundle).manifest
    assert f"layer-skip{{{told['skip']}}}" in manifest.stages["route"].pipeline
    assert manifest.rebuild.count("--skip") == 1
    assert check(bundle).holds
    engine = load(bundle)
    plain = engine.generate([5, 6], recipe="plain", max_new_tokens=12, ignore_eos=True)
    assert engine.generate([5, 6], max_new_tokens=12, ignore_eos=True).tokens == plain.tokens


def test_a_search_that_finds_nothing_better_leaves_the_bundle(
    bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 3 alone agrees."""
    own = frozenset({6, 7})
    monkeypatch.setattr(Agreement, "__call__", lambda self, s: 1.0 if s == own else 0.05)
    before = (bundle / "manifest.json").read_bytes()
    args = ("--prompts", prompts, "--recipes", "self-skip", "--max-new-tokens", "4", "-q")
    result = call("tune", bundle, *args)
    assert result.exit_code == 0, result.output
    assert "has this route already" in result.stdout
    assert (bundle / "manifest.json").read_bytes() == before


def test_parts_that_add_nothing_agree_on_every_token(bundle: Path) -> None:
    """And a search that is begun again asks for nothing twice."""
    opened, asked = Bundle.open(bundle), list[Any]()

    class Counting:
        def __init__(self, real: Any) -> None:
            self.real = real

        def best(self, tokens: Any, keep: Any) -> Any:
            asked.append(tuple(keep))
            return self.real.best(tokens, keep)

    from graftline.bundle.store import load_graph

    model = load_graph(opened.graph("canonical"))
    work = keep_parts(model)
    graph: Any = Counting(module.Gated(model, 1))
    told = load(bundle).generate([7, 8, 9], recipe="plain", max_new_tokens=20, ignore_eos=True)
    texts = [(np.asarray([7, 8, 9, *told.tokens]), 3)]
    agreement = Agreement(opened, texts, graph, len(work.parts))
    assert agreement(frozenset()) == 1.0
    assert agreement(frozenset({2, 3, 5})) == 1.0
    assert agreement(frozenset({0, 1})) < 1.0
    again = Agreement(Bundle.open(bundle), texts, graph, len(work.parts))
    assert again(frozenset({2, 3, 5})) == 1.0
    assert len(asked) == 3


@pytest.mark.parametrize("skip", ["", "1", "attention=0+2,mlp=1"])
def test_a_graph_of_all_routes_is_each_of_them(skip: str) -> None:
    options = dict(p.split("=") for p in skip.split(",")) if "=" in skip else {"layers": skip}
    model = SPEC.build()
    infer_shapes(model)
    Pipeline.parse("anchors", GRAFTS).run(model)
    routed, way = model.clone(), LayerSkip(**options).route(model)
    LayerSkip(**options).apply(routed)
    work = keep_parts(model)
    attention, mlp = 2 * 32 * 64 + 2 * 32 * 32, 3 * 32 * 64
    assert work.parts == (attention, mlp) * 4
    assert work.whole == sum(work.parts) + 260 * 32
    keep = np.ones(8, np.float32)
    keep[[2 * b for b in way.attention] + [2 * b + 1 for b in way.mlp]] = 0
    feed = decoder_feed(260)
    got, expected = run(model, {**feed, KEEP: keep})["logits"], run(routed, feed)["logits"]
    assert_same_sums(got, expected, decoder_terms(SPEC, seen=24))


def test_the_search_skips_what_saves_most_for_what_it_loses() -> None:
    """Part 3 loses much; 0 or 1 alone does not pay; 2 is the last attention."""
    loss = {0: 0.1, 1: 0.12, 2: 0.01, 3: 0.9}
    asked: list[frozenset[int]] = []

    def agreement(skipped: frozenset[int]) -> float:
        asked.append(skipped)
        return float(np.prod([1 - loss[p] for p in skipped]))

    search = Search((30, 40, 1, 29), 100, lambda rows: 1 + 0.1 * (rows - 1), agreement)
    best = search.run(frozenset({3}), lambda line: None)
    assert best.skipped == {0, 1}
    assert best.cost == pytest.approx(0.3)
    assert best.value > 1 > search.tried(frozenset({3})).value
    assert frozenset({0, 2}) not in asked


def test_skipped_parts_as_the_option_says_them() -> None:
    assert skip_text(frozenset({2, 3, 4, 7, 9})) == "layers=1,attention=2,mlp=3-4"


def test_bad_input_is_one_line_and_the_bundle_stays(
    bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    given = ("--prompts", prompts, "--max-new-tokens", "4", "-q", "--recipes")
    plain = tmp_path / "plain.graft"
    shutil.copytree(bundle, plain)
    checkpoint = tmp_path / "checkpoint"
    made = optimize(checkpoint, tmp_path / "other.graft", recipe="plain").path
    for path, recipes, told in (
        (bundle, "self-skip,suffix", "self-skip makes the bundle again; tune it alone"),
        (made, "self-skip", "has no route to tune; build one"),
    ):
        result = call("tune", path, *given, recipes)
        assert result.exit_code == 2, result.output
        assert told in result.stderr
        assert result.stderr.count("\n") == 1
    assert (bundle / "manifest.json").read_bytes() == before
