"""A draft engine with its first blocks beside it: made in one go, stored once, checked and used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.commands.cli import app
from graftline.draft import check_depths, parse_depths
from graftline.errors import BackendError, GraftlineError, LawBroken
from graftline.kinds.decoder.stages import prove_depth
from graftline.kinds.kind import Parts
from graftline.runtimes.load import load
from graftline.runtimes.sessions import open_session
from tests.free_engine import free
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

DEPTHS = (1, 3)


@pytest.fixture(scope="module")
def checkpoints(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two checkpoints of five blocks, of other weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    one, two = folder / "one", folder / "two"
    for seed, path in enumerate((one, two)):
        path.mkdir()
        known_checkpoints[path] = TinyCheckpoint(path, replace(WIDE, layers=5, seed=seed))
    return one, two


@pytest.fixture(scope="module", params=["shared", "own"])
def bundle(
    request: pytest.FixtureRequest,
    checkpoints: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A target with its own weights in int8 as draft, or with another checkpoint's."""
    out = tmp_path_factory.mktemp("depths") / "deep.graft"
    draft = "int8" if request.param == "shared" else f"{checkpoints[1]}:int8"
    return optimize(checkpoints[0], out, recipe="s2d", draft=draft, draft_depths=DEPTHS)


def test_depths_are_graphs_over_one_weight_file(bundle: Bundle) -> None:
    assert bundle.manifest.of_role("depth", "draft").keys() == {"depth-1", "depth-3"}
    assert bundle.manifest.rebuild.endswith("--draft-depths 1,3")
    weights = {name for name in bundle.manifest.files if name.endswith(".weights")}
    assert weights <= {"engine.weights", "source/source.weights"}
    own = "draft.export" in bundle.manifest.stages
    assert own != bundle.manifest.same_weights("draft")

    def places(stage: str) -> set[tuple[int | None, int | None]]:
        weights = load_graph(bundle.graph(stage)).graph.initializers.values()
        tensors = [v.const_value for v in weights]
        return {(t.offset, t.length) for t in tensors if isinstance(t, ir.ExternalTensor)}

    whole, three, one = places("draft"), places("depth-3"), places("depth-1")
    assert one < three < whole
    assert len(one) > 4


def test_a_draft_of_another_checkpoint_is_compared_with_it(bundle: Bundle) -> None:
    found = [(w.graft, w.owner) for w in bundle.manifest.laws if w.law == "checkpoint"]
    drafts = [] if bundle.manifest.same_weights("draft") else [("draft.export", "draft")]
    assert found == [("export", "target"), *drafts]
    fronts = [p.owner for p in bundle.manifest.passes if p.name == "canonicalize"]
    assert fronts == ["target", *(owner for _, owner in drafts)]


def test_a_depth_has_its_blocks_caches_and_their_work(bundle: Bundle) -> None:
    for blocks in DEPTHS:
        ports = bundle.manifest.stages[f"depth-{blocks}"].ports
        assert {p.layer for p in ports if p.mirror} == set(range(blocks))
        nodes = load_graph(bundle.graph(f"depth-{blocks}")).graph
        assert sum(n.op_type == "GroupQueryAttention" for n in nodes) == blocks
    cut = next(p for p in bundle.manifest.passes if p.text == "cut-depth{blocks=3}")
    assert cut.owner == "draft"
    held = {(row.graft, row.law) for row in bundle.manifest.laws}
    assert {("depth-1", "prefix"), ("depth-3", "prefix"), ("depth-3", "depth")} <= held


def test_check_runs_the_laws_of_the_depths_again(bundle: Bundle) -> None:
    load(bundle.path).generate([1, 2, 3], max_new_tokens=4)  # measures costs: caches, not changes
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    found = [f.found for f in report.findings]
    assert any(text.startswith("depth-3: ") and "made again as stored" in text for text in found)
    assert any(text.startswith("depth-1: ") and "after block 0 through" in text for text in found)
    assert any(f.what.startswith("greedy tokens, s2d") for f in report.findings)


def test_the_proof_sees_an_engine_of_another_depth(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    """In fp32 the engine must be the host cut there; one block more or less is not."""
    draft = f"{checkpoints[1]}:fp32"
    made = optimize(checkpoints[0], tmp_path / "a", recipe="s2d", draft=draft, draft_depths=(2, 3))
    stages, silent = dict(made.manifest.stages), lambda line: None
    parts = Parts(made.path, stages, made.manifest.target, "draft")
    assert prove_depth(parts, "depth-2", silent)[-1].law == "depth"
    stages["depth-3"] = replace(stages["depth-3"], facts=stages["depth-2"].facts)
    with pytest.raises(LawBroken, match="'depth' at row"):
        prove_depth(parts, "depth-3", silent)


def test_inspect_shows_the_depths(bundle: Bundle) -> None:
    result = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "stage draft 5 blocks of" in said
    assert "stage depth-3 3 of 5 blocks of" in said
    result = CliRunner().invoke(app, ["inspect", str(bundle.path), "--stage", "depth-3"])
    assert result.exit_code == 0


def test_every_depth_is_measured_and_kept(bundle: Bundle) -> None:
    engine = load(bundle.path)
    assert engine.resources.depths is not None
    depths = engine.resources.depths()
    assert len(depths) == 3
    assert all(0 < one.step < 1000 and 0.05 <= one.agreement <= 0.98 for one in depths)
    kept = list((bundle.path / "costs").iterdir())
    again = load(bundle.path)
    assert again.resources.depths is not None
    assert [d.agreement for d in again.resources.depths()] == [d.agreement for d in depths]
    assert list((bundle.path / "costs").iterdir()) == kept
    shared = bundle.manifest.same_weights("draft")
    assert all(one.shares == shared for one in depths)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(bundle: Bundle, temperature: float) -> None:
    """With costs None every step drafts, and every sub-model that may raise a chance is asked."""
    engine = free(bundle.path)
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    alone = [engine.generate(p, recipe="s2d", **options) for p in prompts]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 30
    if bundle.manifest.same_weights("draft") and not temperature:
        assert sum(r.stats.steps for r in alone) < 0.9 * 3 * 29
    if not temperature:
        batch = engine.generate(prompts, recipe="s2d", **options)
        assert [r.tokens for r in batch] == plain


def test_what_a_depth_writes_is_gone_with_the_targets_next_step(bundle: Bundle) -> None:
    """A sub-model over the target's caches: nothing of it may be seen by the target."""
    if not bundle.manifest.same_weights("draft"):
        pytest.skip("a draft on caches of its own")
    target = open_session(bundle, capacity=64)
    draft = open_session(bundle, capacity=64, stage="depth-3")
    guest = draft.sibling(target)
    target.prefill([np.arange(9)])
    expected = target.score(np.asarray([[7]])).logits.copy()
    guest.follow(0, 9, [1, 2, 3, 4])
    assert np.array_equal(target.score(np.asarray([[7]])).logits, expected)
    with pytest.raises(BackendError, match="which cannot be shared"):
        target.sibling(draft.sibling())


@pytest.mark.parametrize(
    ("depths", "draft", "message"),
    [
        ((3, 1), "int8", r"depths start at 1 and increase, as in --draft int8"),
        ((1, 1), "int8", "depths start at 1 and increase"),
        ((0, 2), "int8", "depths start at 1 and increase"),
        ((1, 5), "int8", "the draft int8 has 5 blocks; use depths of 1 to 4"),
        ((1, 2), None, "no draft engine to cut; add one, as in --draft int8"),
        ((), "int8", "the recipe s2d needs depths; add --draft-depths 12,20"),
    ],
)
def test_bad_depths_are_refused_before_anything_is_written(
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    depths: tuple[int, ...],
    draft: str | None,
    message: str,
) -> None:
    recipe = "s2d" if draft else "plain"
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoints[0], tmp_path / "out", recipe=recipe, draft=draft, draft_depths=depths)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["a,b", "12;20", "12,", "-3", "1.5", "²"])
def test_depths_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(GraftlineError, match="numbers of blocks joined by commas, as in"):
        parse_depths(text)
    assert parse_depths("12, 20") == (12, 20)
    check_depths((12, 20), "int8", 30)


def test_a_bundle_without_depths_says_how_to_get_them(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    made = optimize(checkpoints[0], tmp_path / "a", recipe="draft-model", draft="int8")
    assert load(made.path).resources.depths is None
    with pytest.raises(GraftlineError, match=r"needs depths here; .*--draft-depths 12,20"):
        load(made.path, recipe="s2d")
