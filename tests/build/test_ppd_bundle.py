"""A bundle with placeholders in its target: one graph, proven and checked, drafts for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.recipe import recipe
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.markov_host import HIDDEN, Repeating, path_of
from tests.ppd_files import seeded, write_ppd
from tests.tiny_checkpoints import WIDE

AGAIN = 9
"""The token that the right rows foretell."""
PROMPTS = [[7, 8, AGAIN], [4, 5], [1, AGAIN, AGAIN, AGAIN]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ppd")


@pytest.fixture(scope="module")
def repeating(known_checkpoints: dict[Path, Any], folder: Path) -> Repeating:
    path = path_of(folder, "repeating")
    known_checkpoints[path] = found = Repeating(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(repeating: Repeating, folder: Path) -> Bundle:
    """Over a host that says the last token for ever, rows that foretell one token."""
    table = repeating.host().model.graph.initializers["embed.weight"].const_value
    assert table is not None
    head = write_ppd(folder / "right", np.repeat(table.numpy()[[AGAIN]], 3, 0))
    return optimize(repeating.path, folder / "right.graft", head=str(head))


@pytest.fixture(scope="module")
def seeded_bundle(wide_checkpoint: Path, folder: Path) -> Bundle:
    """Rows that know nothing, over a host that nobody knows."""
    head = write_ppd(folder / "seeded", seeded(HIDDEN))
    return optimize(wide_checkpoint, folder / "seeded.graft", head=str(head))


def test_there_is_no_graph_beside_the_targets(right: Bundle) -> None:
    manifest = right.manifest
    assert manifest.recipe == "ppd"
    assert {stage.owner for stage in manifest.stages.values()} == {"target"}
    assert (manifest.decoder.placeholders, manifest.decoder.told()) == (
        3, "2 blocks, 3 placeholders",
    )  # fmt: skip
    assert "--recipe ppd" in manifest.rebuild
    assert "--head " in manifest.rebuild
    held = {(row.graft, row.law) for row in manifest.laws if row.status == "held"}
    assert ("placeholders", "placeholder-rows") in held
    assert check(right.path).holds, "the head's rows are in the bundle, and it is made again"


@pytest.mark.parametrize("branches", [True, False], ids=["trees", "chains"])
def test_what_is_foretold_is_accepted_to_its_end(right: Bundle, branches: bool) -> None:
    """Three placeholders and the target's own token: every full step gives four."""
    engine = free(right.path)
    session: Any = engine.session
    session._tree = branches
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        assert result.tokens == [prompt[-1]] * 41
        if prompt[-1] == AGAIN:
            assert result.stats.mat > (2.5 if branches else 1.5)
        else:
            assert result.stats.mat == 1.0


def test_sequences_draft_side_by_side(right: Bundle) -> None:
    results = free(right.path).generate(PROMPTS, max_new_tokens=30, ignore_eos=True)
    assert [r.tokens for r in results] == [[p[-1]] * 30 for p in PROMPTS]
    assert [r.stats.mat > 1.5 for r in results] == [True, False, True]


def test_statistics_count_text_alone(right: Bundle) -> None:
    result = free(right.path).generate([3, AGAIN], max_new_tokens=21, ignore_eos=True)
    stats = result.stats
    assert stats.spec_decode.num_accepted_tokens == 21 - 1 - stats.steps
    assert max(len(stats.accepted_per_depth), 3) == 3, "no depth is a placeholder's"
    alone = free(right.path).generate([3, AGAIN], max_new_tokens=2, ignore_eos=True).stats
    assert (alone.drafted, alone.spec_decode.num_drafts) == (0, 0), "placeholders are no drafts"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(
    seeded_bundle: Bundle, temperature: float
) -> None:
    engine = free(seeded_bundle.path)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True, "seed": 3}
    options |= {"temperature": temperature, "repetition_penalty": 1.2}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 100
    if not temperature:
        assert [r.tokens for r in engine.generate(PROMPTS, **options)] == plain


@pytest.mark.parametrize("rule", ["rejection", "k-sequential", "block", "typical"])
def test_no_rule_sees_a_placeholder(right: Bundle, rule: str) -> None:
    """Rules that read the children of a node and their ids in the target's distribution."""
    engine = free(right.path, recipe=replace(recipe("ppd"), rule=rule))
    options: dict[str, Any] = {"temperature": 0.5, "seed": 1, "ignore_eos": True}
    result = engine.generate([2, AGAIN], max_new_tokens=24, **options)
    assert max(result.tokens) < engine.session.facts.vocabulary
    assert result.stats.drafted > 0


def test_with_measured_costs_it_drafts_and_says_so(right: Bundle) -> None:
    engine = load(right.path)
    for _ in range(4):
        result = engine.generate([3, AGAIN], max_new_tokens=60, ignore_eos=True)
    assert result.tokens == [AGAIN] * 60
    assert result.stats.controller.startswith("goodput: ppd drafted")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "ppd"}, "the recipe ppd needs a draft head; add --head PATH"),
        ({"head": "HEAD", "recipe": "medusa"}, "drafts with medusa heads, and .* holds ppd heads"),
        ({"head": "HEAD:int8"}, "in the target's precision; give .*head$"),
        ({"head": "HEAD", "passes": "kv-cache"}, "put placeholders into --passes"),
        ({"head": "HEAD", "step": "fused"}, "a fused step drafts by .* not by ppd"),
    ],
)
def test_what_does_not_go_together_is_refused(
    repeating: Repeating, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    head = write_ppd(tmp_path / "head", seeded(HIDDEN))
    given = {k: str(v).replace("HEAD", str(head)) for k, v in options.items()}
    with pytest.raises(GraftlineError, match=message):
        optimize(repeating.path, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_recipe_needs_a_bundle_that_has_placeholders(tiny_bundle: Path) -> None:
    with pytest.raises(GraftlineError, match="ppd needs a placeholder here; build the bundle with"):
        load(tiny_bundle, recipe="ppd")


def test_few_bits_keep_the_rows(repeating: Repeating, folder: Path, right: Bundle) -> None:
    bundle = optimize(
        repeating.path, folder / "int8.graft", head=str(folder / "right"), dtype="int8"
    )
    result = free(bundle.path).generate([7, AGAIN], max_new_tokens=40, ignore_eos=True)
    assert result.tokens == [AGAIN] * 40
    assert result.stats.mat > 3.0
