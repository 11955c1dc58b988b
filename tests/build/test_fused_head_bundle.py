"""A bundle whose fused step drafts by heads: made, proven, checked again, decoded with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import GraftlineError
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, path_of, right_heads
from tests.medusa_files import seeded, write_safe
from tests.tiny_checkpoints import WIDE

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fused-heads")


@pytest.fixture(scope="module")
def markov(known_checkpoints: dict[Path, Any], folder: Path) -> MarkovCheckpoint:
    """A host whose every token is known from the one before."""
    path = path_of(folder, "markov")
    known_checkpoints[path] = found = MarkovCheckpoint(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(markov: MarkovCheckpoint, folder: Path) -> Bundle:
    """Heads that know what comes."""
    head = write_safe(folder / "v1", right_heads(markov))
    return optimize(markov.path, folder / "right.graft", head=str(head), step="fused")


def test_the_step_and_the_stage_of_its_heads_are_proven(right: Bundle) -> None:
    manifest = right.manifest
    assert {"fused", "head.0"} <= set(manifest.stages)
    told = manifest.stages["fused"].pipeline
    assert "| fuse-verify{sample=true} | fuse-heads | pack" in told
    assert "--step fused" in manifest.rebuild
    assert "--head " in manifest.rebuild
    laws = {(w.graft.partition("{")[0], w.law): w for w in manifest.laws}
    assert laws["fuse-heads", "drafted-by-heads"].status == "held"
    assert "the trees that heads draft" in laws["fused", "fused"].text
    report = check(right.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    found = {f.what for f in report.findings}
    assert any(what.startswith("greedy tokens, medusa, fused") for what in found)


def test_right_heads_are_accepted_to_their_end(right: Bundle) -> None:
    """Three heads and the target's own token: four a step, after a first that tries nothing."""
    engine = free(right.path, step="fused")
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        assert result.tokens == [(prompt[-1] + 7 * n) % VOCABULARY for n in range(1, 42)]
        assert result.stats.steps == 1 + 10, "40 tokens behind the prompt's own: 1, then 4 a step"
        assert result.stats.controller.startswith("fused: medusa, a tree of 32 rows")


@pytest.mark.parametrize("dtype", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_heads_are_quantized_with_their_target(
    markov: MarkovCheckpoint, folder: Path, dtype: str
) -> None:
    head = write_safe(folder / "few", right_heads(markov))
    out = folder / f"{dtype}.graft"
    bundle = optimize(markov.path, out, head=str(head), step="fused", dtype=dtype)
    laws = {(w.graft, w.law): w.status for w in bundle.manifest.laws}
    assert laws["fused", "fused"] == "held"
    result = free(bundle.path, step="fused").generate(PROMPTS[0], max_new_tokens=41)
    assert result.stats.steps == 11


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}])
def test_heads_that_know_nothing_change_nothing(
    wide_checkpoint: Path, folder: Path, options: dict[str, Any]
) -> None:
    out = folder / "seeded.graft"
    if not out.exists():
        head = write_safe(folder / "deep", seeded(HIDDEN, VOCABULARY, heads=4, layers=2))
        optimize(wide_checkpoint, out, head=str(head), step="fused")
    engine = free(out)
    asked = {"max_new_tokens": 30, "ignore_eos": True, **options}
    for prompts in (PROMPTS, PROMPTS[:1]):
        plain = engine.generate(prompts, recipe="plain", step="host", **asked)
        fused = engine.generate(prompts, step="fused", **asked)
        assert [r.tokens for r in fused] == [r.tokens for r in plain]


def test_the_command_line(right: Bundle) -> None:
    run = ["run", str(right.path), "abc", "--max-new-tokens", "20", "--json"]
    host, fused = (
        json.loads(CliRunner().invoke(app, [*run, *more]).stdout)
        for more in ([], ["--step", "fused"])
    )
    assert fused["tokens"] == host["tokens"]
    assert fused["stats"]["controller"].startswith("fused: medusa")


def test_what_is_not_fused_is_refused_in_a_line(
    markov: MarkovCheckpoint, right: Bundle, tmp_path: Path
) -> None:
    head = str(write_safe(tmp_path / "deep", seeded(HIDDEN, VOCABULARY, layers=2)))
    for options, message in (
        ({"head": f"{head}:int8"}, "further ones are one batched product|has its heads in"),
        ({"head": head, "dtype": "int8"}, "heads in int8 where the target is int8, not in fp32"),
        ({"head": head, "recipe": "medusa-typical"}, "judges by greedy or point-mass, not by typ"),
    ):
        with pytest.raises(GraftlineError, match=message) as caught:
            optimize(markov.path, tmp_path / "out", step="fused", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(GraftlineError, match="medusa or eagle, not by suffix"):
        load(right.path, recipe="suffix", step="fused")
    with pytest.raises(GraftlineError, match="of this bundle drafts by medusa, not by token-recyc"):
        load(right.path, recipe="token-recycling", step="fused")
    with pytest.raises(GraftlineError, match="of this bundle drafts by medusa, not by token-recyc"):
        free(right.path).generate(PROMPTS[0], recipe="token-recycling", step="fused")
