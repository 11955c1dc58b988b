"""A bundle with a draft head in it: made in one go, proven, checked, packed, and decoded with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.head_plan import HeadPlan
from graftline.build.heads import planned
from graftline.build.optimize import optimize
from graftline.bundle.pack import pack
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.recipe import recipe
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.markov_host import (
    HIDDEN,
    VOCABULARY,
    MarkovCheckpoint,
    Repeating,
    around,
    path_of,
    right_heads,
    right_layers,
)
from tests.medusa_files import seeded, write_pickled, write_safe
from tests.tiny_checkpoints import WIDE

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def markov(known_checkpoints: dict[Path, Any], folder: Path) -> MarkovCheckpoint:
    """A host whose every token is known from the one before."""
    path = path_of(folder, "markov")
    known_checkpoints[path] = found = MarkovCheckpoint(path, WIDE)
    return found


@pytest.fixture(scope="module")
def repeating(known_checkpoints: dict[Path, Any], folder: Path) -> Repeating:
    path = path_of(folder, "repeating")
    known_checkpoints[path] = found = Repeating(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(markov: MarkovCheckpoint, folder: Path) -> Bundle:
    """V1 heads that know what comes."""
    head = write_pickled(folder / "v1", right_heads(markov), medusa_num_heads=2)
    return optimize(markov.path, folder / "right.graft", head=str(head))


@pytest.fixture(scope="module")
def seeded_bundle(wide_checkpoint: Path, folder: Path) -> Bundle:
    """V1 heads of two layers that know nothing, over a host that nobody knows."""
    head = write_safe(folder / "deep", seeded(HIDDEN, VOCABULARY, heads=4, layers=2))
    return optimize(wide_checkpoint, folder / "seeded.graft", head=str(head))


def test_the_head_is_a_stage_with_an_owner(right: Bundle) -> None:
    manifest = right.manifest
    stage = manifest.stages["head.0"]
    assert (stage.role, stage.owner, stage.made_of) == ("engine", "head.0", "head.0.export")
    assert stage.inputs_from == ("ort-cpu",)
    assert stage.pipeline == "draft-heads{topk=10} | lower-ort"
    shapes = {p.role: p.shape for p in stage.ports}
    assert shapes == {
        "hidden": ("B", "N", HIDDEN), "heads.logits": ("B", "N", 3, VOCABULARY),
        "heads.topk_ids": ("B", "N", 3, 10), "heads.topk_logits": ("B", "N", 3, 10),
    }  # fmt: skip
    assert {p.owner for p in stage.ports} == {"head.0"}
    assert manifest.recipe == "medusa"
    assert "--recipe medusa" in manifest.rebuild
    assert "--head " in manifest.rebuild
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("export", "formula"), ("draft-heads", "neutral"), ("draft-heads", "head-formula"),
              ("head.0", "whole"), ("head.0", "best")]  # fmt: skip
    assert {laws[row] for row in wanted} == {"held"}


def test_inspect_shows_the_stage(right: Bundle) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(right.path)], terminal_width=300).stdout
    assert "stage head.0" in shown
    assert "3 heads of one layer, scored by an lm_head each of v1, fp32: draft-heads{topk=10}" in (
        " ".join(shown.split())
    )
    assert "head.0: draft-heads{topk=10}" in shown
    own = CliRunner().invoke(app, ["inspect", str(right.path), "--stage", "head.0"]).stdout
    assert "heads.topk_ids" in own


def test_right_heads_are_accepted_to_their_end(right: Bundle) -> None:
    """Three heads and the token of the target itself: every full step gives four."""
    engine = free(right.path)
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        assert result.tokens == [(prompt[-1] + 7 * n) % VOCABULARY for n in range(1, 42)]
        assert result.stats.mat > 3.5
        assert result.stats.accepted_per_depth[0] == 1.0
    again = engine.generate(PROMPTS[2], max_new_tokens=41, ignore_eos=True)
    assert again.stats.reused == len(PROMPTS[2])
    assert (again.tokens, again.stats.mat) == (result.tokens, result.stats.mat), "as if it was read"


def test_v2_heads_score_by_the_targets_own_matrix(repeating: Repeating, folder: Path) -> None:
    head = write_safe(folder / "v2", right_layers(), medusa_num_layers=1)
    bundle = optimize(
        repeating.path, folder / "v2.graft", head=str(head / "medusa_lm_head.safetensors")
    )
    result = free(bundle.path).generate([7, 8, 9], max_new_tokens=40, ignore_eos=True)
    assert result.tokens == [9] * 40
    assert result.stats.mat > 3.5
    matrix = VOCABULARY * HIDDEN * 4
    sizes = [bundle.file(rel).stat().st_size for rel in bundle.manifest.files if "weights" in rel]
    own = sum(v.nbytes for v in right_layers().values())
    assert sum(sizes) < matrix + _weights(repeating) + own, "the matrix is stored once"
    assert check(bundle.path).holds


def test_heads_are_of_few_bits_beside_such_a_target(repeating: Repeating, folder: Path) -> None:
    head = write_safe(folder / "beside", right_layers())
    for said, dtype in ((str(head), "int8"), (f"{head}:fp32", "fp32")):
        out = folder / f"{dtype}.graft"
        bundle = optimize(repeating.path, out, head=said, dtype="int8")
        stage = bundle.manifest.stages["head.0"]
        assert (bundle.manifest.dtype, stage.dtype) == ("int8", dtype)
        assert ("quantize" in stage.pipeline) == (dtype == "int8")
        assert f"--head {said}" in bundle.manifest.rebuild
        laws = {(w.graft, w.law): w for w in bundle.manifest.laws}
        assert (laws["head.0", "whole"].value or 0.0) > (0.001 if dtype == "int8" else -1.0)
        result = free(bundle.path).generate([7, 8, 9], max_new_tokens=40, ignore_eos=True)
        assert result.tokens == [9] * 40
        assert result.stats.mat > 3.5
        assert check(bundle.path).holds


def test_heads_of_several_layers_stay_in_full_precision(tmp_path: Path) -> None:
    head = open_head(write_safe(tmp_path / "deep", seeded(HIDDEN, VOCABULARY, layers=2)))
    assert planned(head, HeadPlan.parse("deep", "int4")).dtype == "fp32"
    with pytest.raises(GraftlineError, match="stays fp32; give deep:fp32"):
        planned(head, HeadPlan.parse("deep:int8", "fp32"))


def _weights(checkpoint: MarkovCheckpoint) -> int:
    values = checkpoint.host().model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(
    seeded_bundle: Bundle, temperature: float
) -> None:
    engine = free(seeded_bundle.path)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 200
    if not temperature:
        batch = engine.generate(PROMPTS, **options)
        assert [r.tokens for r in batch] == plain


def test_one_call_of_the_heads_serves_a_batch(right: Bundle) -> None:
    engine = free(right.path)
    heads: Any = engine.resources.head()
    calls: list[int] = []
    answer = heads.answer

    def counted(hidden: Any, *others: Any) -> Any:
        calls.append(len(hidden))
        return answer(hidden, *others)

    heads.answer = counted
    results = engine.generate([[3, 4], [9, 1, 2], [8]], max_new_tokens=20, ignore_eos=True)
    assert [r.tokens[0] for r in results] == [around(p) for p in (4, 2, 8)]
    steps = max(r.stats.steps for r in results)
    assert max(calls) == 3
    assert len(calls) <= steps + 2, "sequences that draft in one step ask the heads together"


def test_with_measured_costs_the_engine_says_what_it_drafted(right: Bundle) -> None:
    engine = load(right.path)
    assert engine.resources.head is not None
    assert engine.resources.head().milliseconds > 0.0
    kept = {file: file.read_text() for file in (right.path / "costs").iterdir()}
    assert any("head.0 beside the target" in text for text in kept.values())
    again = load(right.path)
    assert again.resources.head is not None
    assert again.resources.head().milliseconds == engine.resources.head().milliseconds
    result = engine.generate([1, 2, 3], max_new_tokens=60, ignore_eos=True)
    assert result.stats.lossless
    assert "medusa" in result.stats.controller


def test_published_trees_and_typical_acceptance(right: Bundle) -> None:
    shaped = replace(recipe("medusa"), options={"rows": 32, "tree": "medusa-mc-sim-7b-63"})
    result = free(right.path, recipe=shaped).generate([1, 2, 3], max_new_tokens=41, ignore_eos=True)
    assert result.stats.mat > 2.5
    assert result.tokens[-1] == (3 + 7 * 41) % VOCABULARY
    typical = free(right.path, recipe="medusa-typical")
    loose = typical.generate([1, 2, 3], max_new_tokens=41, ignore_eos=True)
    assert not loose.stats.lossless
    assert loose.stats.mat > 2.5


def test_check_proves_the_head_again_and_sees_another_weight(right: Bundle, folder: Path) -> None:
    report = check(right.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    found = {f.what for f in report.findings}
    assert {"head.0: law whole", "head.0: law formula", "head.0: law reproducible"} <= found
    victim = right.path / "head.0.onnx"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert not check(right.path).holds
    victim.write_bytes(whole)


def test_a_packed_bundle_drafts(right: Bundle, folder: Path) -> None:
    packed = pack(right.path, folder / "packed.graft")
    result = free(packed.path).generate([1, 2, 3], max_new_tokens=41, ignore_eos=True)
    assert result.stats.mat > 3.5


def test_the_same_pass_puts_the_heads_on_the_target(markov: MarkovCheckpoint, folder: Path) -> None:
    head = write_safe(folder / "onto", right_heads(markov))
    passes = "kv-cache | tap{layers=norm} | draft-heads{topk=4} | reduce-logits{topk=4}"
    bundle = optimize(markov.path, folder / "onto.graft", head=str(head), passes=passes)
    ports = {p.role: p for p in bundle.manifest.main.ports if p.owner == "head.0"}
    assert ports["heads.topk_ids"].shape == ("B", "N", 3, 4)
    laws = {(w.graft, w.law) for w in bundle.manifest.laws if w.owner == "target"}
    assert ("draft-heads{topk=4}", "head-formula") in laws
    assert check(bundle.path).holds


def test_heads_of_another_model_are_refused_in_a_line(
    markov: MarkovCheckpoint, tmp_path: Path
) -> None:
    for tensors, message in (
        (seeded(16, VOCABULARY), r"'0\.0\.linear\.weight' is 16, but .* needs 32"),
        (seeded(HIDDEN, 300), r"'0\.1\.weight' is 300, but .* needs 260"),
        (_spoiled(), "numbers that are not finite"),
    ):
        head = write_safe(tmp_path / "head", tensors)
        with pytest.raises(CheckpointError, match=message) as caught:
            optimize(markov.path, tmp_path / "out", head=str(head))
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head"]


def _spoiled() -> dict[str, Any]:
    tensors = seeded(HIDDEN, VOCABULARY)
    tensors["1.1.weight"][3, 4] = np.nan
    return tensors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "medusa"}, "the recipe medusa needs a draft head; add --head PATH"),
        ({"recipe": "suffix", "head": "HEAD"}, "the recipe suffix reads no draft head"),
        ({"head": "HEAD", "target": "ort-cuda", "step": "fused"}, "--step fused needs --target"),
        ({"head": "HEAD", "step": "fused", "recipe": "medusa-typical"}, "not by typical"),
        ({"head": "HEAD:int8", "step": "fused"}, "in fp32 where the target is fp32, not in int8"),
        ({"head": "nowhere"}, "nowhere: no such file or folder"),
        ({"head": "HEAD", "passes": "kv-cache"}, r"put tap\{layers=norm\} into --passes"),
    ],
)
def test_what_does_not_go_together_is_refused(
    markov: MarkovCheckpoint, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    head = write_safe(tmp_path / "head", seeded(HIDDEN, VOCABULARY))
    given = {k: str(v).replace("HEAD", str(head)) for k, v in options.items()}
    with pytest.raises(GraftlineError, match=message):
        optimize(markov.path, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_drafts_with_heads_needs_a_bundle_that_has_some(tiny_bundle: Path) -> None:
    with pytest.raises(GraftlineError, match="medusa needs a head here; build the bundle with"):
        load(tiny_bundle, recipe="medusa")
