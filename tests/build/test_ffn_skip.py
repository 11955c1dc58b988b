"""ffn-skip: tokens that pass by MLPs once one has hardly changed them, in a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.commands.cli import app
from graftline.errors import GraftlineError
from graftline.evaluate import run
from graftline.passes.laws.gated import similarity_of
from graftline.runtimes.load import load
from graftline.runtimes.schedules.gated import Gated
from tests.silenced_mlps import silenced
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=8)
RECIPE, STAGE = "ffn-skip", "gated-1"
REGION, WARM_UP = range(2, 6), 8
PROMPT, NEW = [7, 30, 101, 5, 66, 91], 40


@pytest.fixture(scope="module")
def checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return optimize(checkpoint, tmp_path_factory.mktemp("ffn-skip") / "made.graft", recipe=RECIPE)


def generate(engine: Any, prompt: Any = None, **options: Any) -> Any:
    prompt = PROMPT if prompt is None else prompt
    return engine.generate(prompt, max_new_tokens=NEW, ignore_eos=True, **options)


def definition(tokens: list[int], first: int, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, V] of a whole text, nothing cached, and how many MLPs each position passes by:
    block by block, from position `first` on, by a host in which what is passed by adds nothing."""
    keep = np.ones((SPEC.layers, 1, len(tokens), 1), np.float32)
    feed = {"tokens": np.asarray([tokens]), "positions": np.arange(len(tokens))[None]}
    passes = np.zeros(len(tokens), np.bool_)
    for block in REGION:
        keep[block, 0, passes, 0] = 0
        found = run(silenced(SPEC, keep), feed)
        mid, full = (found[f"{name}.{block}"][0].astype(np.float64) for name in ("mid", "full"))
        lengths = np.linalg.norm(mid, axis=-1) * np.linalg.norm(full, axis=-1)
        passes |= (mid * full).sum(-1) >= similarity * lengths
        passes[:first] = False
    return run(silenced(SPEC, keep), feed)["logits"][0], (keep == 0).sum(0)[0, :, 0]


def test_tokens_are_those_of_the_definition(bundle: Bundle) -> None:
    """The prompt and the first steps by all of the model, then each token passes by what the method
    says, recomputed from the first position on; and what the engine counts is that."""
    engine = load(bundle.path)
    gated = engine.policies.of(None).course.graphs[1]  # type: ignore[attr-defined]
    counts: list[int] = []
    real = gated.follow

    def counted(*given: Any) -> Any:
        scores = real(*given)
        counts.append(int(gated.skipped[0, 0]))
        return scores

    gated.follow = counted
    answer = generate(engine)
    first = len(PROMPT) + WARM_UP
    similarity = similarity_of(load_graph(bundle.graph(STAGE)))
    logits, passed = definition([*PROMPT, *answer.tokens[:-1]], first, similarity)
    assert counts == passed[first:].tolist()
    assert 0 < np.mean(counts) < len(REGION) - 1
    expected = logits[len(PROMPT) - 1 :]
    best = np.sort(expected, axis=-1)
    chosen = expected[np.arange(NEW), answer.tokens]
    assert (best[:, -1] - chosen < 1e-3).all()
    plain = generate(load(bundle.path, recipe="plain"))
    assert plain.tokens[:WARM_UP] == answer.tokens[:WARM_UP]
    assert plain.tokens != answer.tokens
    assert not answer.stats.lossless
    assert "gated" in answer.stats.controller


def test_every_law_is_held_and_check_sees_them(bundle: Bundle) -> None:
    laws = {(row.graft.partition("{")[0], row.law): row.status for row in bundle.manifest.laws}
    owed = [("gate-mlp", "gated"), ("gate-mlp", "saves"), ("select-mlp-rows", "selected"),
            (STAGE, "passed-by"), (STAGE, "schedule")]  # fmt: skip
    assert [laws[row] for row in owed] == ["held"] * len(owed)
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    assert any(f.what == "law passed-by" for f in report.findings)


def test_the_similarity_is_the_one_that_saves_what_was_asked_for(bundle: Bundle) -> None:
    row = next(row for row in bundle.manifest.laws if row.law == "saves")
    assert f"saves {1 - 1 / 1.15:.2f}" in row.what


def test_a_batch_and_neighbours_of_other_recipes_change_nothing(bundle: Bundle) -> None:
    """Ragged prompts of several recipes in the same steps; rows that share a step do not share
    what they pass by."""
    prompts = [PROMPT, PROMPT[:3], [*PROMPT, 9], PROMPT * 3]
    names = [RECIPE, "plain", RECIPE, RECIPE]
    pairs = zip(prompts, names, strict=True)
    alone = [generate(load(bundle.path), p, recipe=n).tokens for p, n in pairs]
    each: list[Any] = [{"recipe": name} for name in names]
    together = generate(load(bundle.path), prompts, options=each)
    assert [r.tokens for r in together] == alone
    assert generate(load(bundle.path), exact=True).tokens == alone[0]


def test_it_says_everywhere_that_it_is_lossy(bundle: Bundle) -> None:
    path, invoke = str(bundle.path), CliRunner().invoke
    said = invoke(app, ["run", path, "hello", "--stats", "--max-new-tokens", "4"])
    assert "not lossless" in " ".join(said.output.split())
    shown = " ".join(invoke(app, ["inspect", path]).output.split())
    assert f"stage {STAGE}" in shown
    assert "not lossless" in shown


def test_bench_prints_quality_and_what_was_passed_by(bundle: Bundle, tmp_path: Path) -> None:
    prompts, figures = tmp_path / "p.jsonl", tmp_path / "f.json"
    prompts.write_text('{"prompt": "hello"}\n')
    asked = ["bench", str(bundle.path), "--prompts", str(prompts), "--recipes", RECIPE]
    result = CliRunner().invoke(app, [*asked, "--max-new-tokens", "4", "--json", str(figures)])
    assert result.exit_code == 0, result.output
    assert f"{RECIPE}, not lossless: perplexity" in result.output
    assert "of 8 MLPs skipped at each" in " ".join(result.output.split())
    quality = json.loads(figures.read_text())["recipes"][RECIPE]["quality"]
    assert 0 < quality["skipped_mlps"] < len(REGION)
    assert quality["mlps"] == 8


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"speedup": 1.0}, "a speed-up of 1 skips nothing"),
    "much": ({"speedup": 3.0}, r"more than 1 and less than 1\.\d+ times as fast here, not 3"),
    "target": ({"target": "trt-rtx:sm89", "dtype": "fp16"}, "needs --target ort-cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, case: str
) -> None:
    options, message = REFUSED[case]
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoint, tmp_path / "out", recipe=RECIPE, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_few_blocks_is_refused(
    known_checkpoints: dict[Path, Any], tmp_path: Path
) -> None:
    known_checkpoints[tmp_path / "c"] = TinyCheckpoint(tmp_path / "c", replace(WIDE, layers=5))
    with pytest.raises(GraftlineError, match=r"of 5 blocks, .* fewer than two are left to gate"):
        optimize(tmp_path / "c", tmp_path / "out", recipe=RECIPE)


def test_warm_up_is_a_number_of_steps() -> None:
    with pytest.raises(GraftlineError, match="warm_up is a number of steps, 0 or more, not -1"):
        Gated(warm_up=-1).check()
    assert [Gated(warm_up=2).route(step, 1) for step in range(4)] == [0, 0, 1, 1]
