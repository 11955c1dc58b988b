"""A bundle whose fused step drafts by an EAGLE head: made, proven, checked again, decoded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.runtimes.load import load
from tests.eagle_drafts import head_files
from tests.eagle_files import write_eagle3
from tests.free_engine import free
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, path_of
from tests.tiny_checkpoints import WIDE

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fused-eagle")


@pytest.fixture(scope="module")
def right(known_checkpoints: dict[Path, Any], folder: Path) -> Bundle:
    """A head that knows what comes, on a host whose every token is known from the one before."""
    path = path_of(folder, "markov")
    known_checkpoints[path] = MarkovCheckpoint(path, WIDE)
    head = head_files(folder / "right", right=True)
    return optimize(path, folder / "right.graft", head=str(head), step="fused")


def test_the_step_and_the_stage_of_its_head_are_proven(right: Bundle) -> None:
    manifest = right.manifest
    assert {"fused", "head.0"} <= set(manifest.stages)
    told = manifest.stages["fused"].pipeline
    assert "kv-cache | tree-mask | select-rows" in told, "put in: EAGLE's own steps are chains"
    assert "| fuse-verify{sample=true} | fuse-block{depth=8} | pack" in told
    laws = {(w.graft.partition("{")[0], w.law): w for w in manifest.laws}
    assert laws["fuse-block", "drafted-by-block"].status == "held"
    assert "the head's too, and the chains that it drafts" in laws["fused", "fused"].text
    report = check(right.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    found = {f.what for f in report.findings}
    assert any(what.startswith("greedy tokens, eagle, fused") for what in found)


def test_a_right_head_is_accepted_to_its_end(right: Bundle) -> None:
    """Eight drafts and the target's own token: nine a step, after a first that tries nothing."""
    engine = free(right.path, step="fused")
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=38, ignore_eos=True)
        assert result.tokens == [(prompt[-1] + 7 * n) % VOCABULARY for n in range(1, 39)]
        assert result.stats.steps == 1 + 4, "37 tokens behind the prompt's own: 1, then 9 a step"
        assert result.stats.controller.startswith("fused: eagle, a tree of 9 rows")


@pytest.fixture(scope="module")
def eagle3(wide_checkpoint: Path, folder: Path) -> Bundle:
    """A head over several layers that scores every other token and knows nothing."""
    head = write_eagle3(folder / "eagle3", HIDDEN, VOCABULARY, (0, 1))
    return optimize(wide_checkpoint, folder / "eagle3.graft", head=str(head), step="fused")


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}])
def test_eagle_3_that_knows_nothing_changes_nothing(
    eagle3: Bundle, options: dict[str, Any]
) -> None:
    """Alone and in a ragged batch."""
    engine = free(eagle3.path)
    asked = {"max_new_tokens": 30, "ignore_eos": True, **options}
    for prompts in (PROMPTS, PROMPTS[:1]):
        plain = engine.generate(prompts, recipe="plain", step="host", **asked)
        fused = engine.generate(prompts, step="fused", **asked)
        assert [r.tokens for r in fused] == [r.tokens for r in plain]
        assert all(r.stats.controller.startswith("fused: eagle, a tree of 7") for r in fused)


@pytest.mark.slow
def test_a_head_is_quantized_with_its_target(wide_checkpoint: Path, folder: Path) -> None:
    head = write_eagle3(folder / "few", HIDDEN, VOCABULARY, (0, 1))
    out = folder / "int8.graft"
    bundle = optimize(wide_checkpoint, out, head=str(head), step="fused", dtype="int8")
    laws = {(w.graft, w.law): w.status for w in bundle.manifest.laws}
    assert laws["fused", "fused"] == "held"
    assert len(free(out).generate(PROMPTS[0], step="fused", max_new_tokens=20).tokens) == 20


def test_what_is_not_fused_is_refused_in_a_line(right: Bundle) -> None:
    with pytest.raises(GraftlineError, match="by token-recycling, medusa or eagle, not by suffix"):
        load(right.path, recipe="suffix", step="fused")
    with pytest.raises(GraftlineError, match="of this bundle drafts by eagle, not by medusa"):
        load(right.path, recipe="medusa", step="fused")
