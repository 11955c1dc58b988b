"""A draft that names a mask token: found in its files, kept in its facts, filled on a backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.draft import check_mask_token
from graftline.errors import GraftlineError
from graftline.facts import DecoderFacts
from graftline.recipe import recipe
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

MASK = 258


@pytest.fixture(scope="module")
def checkpoints(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """One that names no mask token, and one of other weights that does."""
    folder = tmp_path_factory.mktemp("checkpoint")
    plain, masked = folder / "plain", folder / "masked"
    known_checkpoints[plain] = TinyCheckpoint(plain, WIDE)
    known_checkpoints[masked] = TinyCheckpoint(masked, replace(WIDE, seed=1), MASK)
    for path in (plain, masked):
        path.mkdir()
    return plain, masked


@pytest.fixture(scope="module", params=["shared", "own"])
def bundle(
    request: pytest.FixtureRequest,
    checkpoints: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A target with its own weights in int8 as draft, or with another checkpoint's."""
    out = tmp_path_factory.mktemp("masks") / "masked.graft"
    plain, masked = checkpoints
    if request.param == "shared":
        return optimize(masked, out, recipe="pard", draft="int8")
    return optimize(plain, out, recipe="pard", draft=f"{masked}:int8")


def test_the_drafts_facts_name_the_mask_token(bundle: Bundle) -> None:
    assert bundle.manifest.stages["draft"].facts.mask_token == MASK
    assert Bundle.open(bundle.path).manifest.stages["draft"].facts.mask_token == MASK


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(bundle: Bundle, temperature: float) -> None:
    engine = free(bundle.path)
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    for name in ("pard", "gad"):
        alone = [engine.generate(p, recipe=name, **options) for p in prompts]
        assert [r.tokens for r in alone] == plain
        assert sum(r.stats.drafted for r in alone) > 100
    if not temperature:
        batch = engine.generate(prompts, recipe="pard", **options)
        assert [r.tokens for r in batch] == plain


def test_rows_after_a_rejected_draft_are_those_of_a_fresh_engine(bundle: Bundle) -> None:
    """What masks wrote is gone: with own caches it is overwritten, with the target's by the target,
    too. As near as rows of calls of several sizes are."""
    engine = load(bundle.path)
    assert engine.resources.draft is not None
    target: Any = engine.session
    random = np.random.default_rng(3)
    text = random.integers(0, 256, 20).tolist()
    reader = Reader(engine.resources.draft(), 260)
    target.reset(1)
    target.prefill([np.asarray(text[:-1])])
    reader.start(text)
    for turn in range(4):
        reader.fill(MASK, 7).scores()
        fresh = random.integers(0, 256, 1 + turn).tolist()
        if reader.engine.shares:
            target.score(np.asarray([[text[-1], *fresh]]))
            target.commit([range(len(fresh))])
        reader.append(fresh)
        text += fresh
    found = reader.fill(MASK, 5).scores().logits.copy()
    target.reset(1)
    target.prefill([np.asarray(text[:-1])])
    again = Reader(engine.resources.draft(), 260)
    again.start(text)
    expected = again.fill(MASK, 5).scores().logits
    assert found.shape == (1, 5, 260)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(found[0, 0] - found[0, 1]).max() > 0.1 * np.abs(expected).max()


def test_several_rows_of_one_call_are_those_of_several_calls(bundle: Bundle) -> None:
    """The rows asked for are the last; a call of more rows than go at once is cut before them."""
    engine = load(bundle.path)
    assert engine.resources.draft is not None
    target: Any = engine.session
    draft = engine.resources.draft()
    text = np.random.default_rng(4).integers(0, 256, 300).tolist()
    for held in (20, 296, 3):
        target.reset(1)
        target.prefill([np.asarray(text[:held])])
        session = draft.session
        session.follow(0, held if draft.shares else 0, text[: 1 if draft.shares else held])
        found = session.follow(0, held, text[held:], 4).logits.copy()
        assert found.shape == (1, 4, 260)
        for row in range(4):
            end = len(text) - 3 + row
            alone = session.follow(0, held, text[held:end]).logits
            near = 0.05 * np.abs(alone).max()
            assert np.abs(found[0, row] - alone[0, 0]).max() < near
            assert np.abs(found[0, (row + 1) % 4] - alone[0, 0]).max() > near


def test_what_rows_cost_the_draft_is_measured_once_and_kept(bundle: Bundle) -> None:
    engine = load(bundle.path)
    assert engine.resources.draft is not None
    opened = engine.resources.draft()
    assert opened.rows_cost(1) == 1.0
    assert 1.0 <= opened.rows_cost(16) < 64.0
    kept = {file: file.read_text() for file in (bundle.path / "costs").iterdir()}
    again = load(bundle.path)
    assert again.resources.draft is not None
    assert again.resources.draft().rows_cost(16) == opened.rows_cost(16)
    assert {file: file.read_text() for file in (bundle.path / "costs").iterdir()} == kept


def test_a_draft_without_a_mask_token_is_refused_and_the_option_names_one(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(GraftlineError, match="the recipe pard needs a draft trained to fill masks"):
        optimize(checkpoints[0], tmp_path / "a", recipe="pard", draft="int8")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GraftlineError, match="its mask token 260 is not among its 260 ids"):
        check_mask_token(DecoderFacts(260, 8, 1, 1, 1, 8, 64, mask_token=260), "", "--draft x")
    made = optimize(checkpoints[0], tmp_path / "a", recipe="draft-model", draft="int8")
    with pytest.raises(GraftlineError, match=r"needs a mask token here; .*option mask"):
        load(made.path, recipe="pard")
    named = replace(recipe("pard"), options={"rows": 5, "mask": 257})
    result = free(made.path, recipe=named).generate([1, 2, 3], max_new_tokens=9, ignore_eos=True)
    assert result.stats.drafted > 8
    with pytest.raises(GraftlineError, match="260 is not among the 260 ids of the draft"):
        load(made.path, recipe=replace(named, options={"mask": 260}))
