"""A bundle whose target stands its own mask token for tokens to come, and commits what it is sure
of there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.recipe import recipe
from tests.free_engine import free
from tests.markov_host import MarkovCheckpoint, path_of
from tests.tiny_checkpoints import WIDE

AGAIN, MASK = 9, 200


class Trained(MarkovCheckpoint):
    """Says the last token for ever, and at its mask token the one that it was trained on."""

    @staticmethod
    def following(token: int) -> int:
        return AGAIN if token == MASK else token


@pytest.fixture(scope="module")
def bundle(known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("lud")
    path = path_of(folder, "trained")
    known_checkpoints[path] = Trained(path, WIDE, mask_token=MASK)
    return optimize(path, folder / "lud.graft", recipe="lud")


def test_the_targets_own_graph_has_the_placeholders(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert {stage.owner for stage in manifest.stages.values()} == {"target"}
    assert (manifest.recipe, manifest.decoder.placeholders) == ("lud", 3)
    held = {(row.graft.partition("{")[0], row.law) for row in manifest.laws if row.status == "held"}
    assert ("placeholders", "placeholder-rows") in held
    assert check(bundle.path).holds


def test_units_are_committed_to_their_end(bundle: Bundle) -> None:
    """The model's own token and three placeholders: every full step gives four."""
    engine = free(bundle.path)
    result = engine.generate([7, 8, AGAIN], max_new_tokens=41, ignore_eos=True)
    assert result.tokens == [AGAIN] * 41
    assert result.stats.mat > 3.0
    assert not result.stats.lossless
    both = engine.generate([[3, AGAIN], [AGAIN]], max_new_tokens=20, ignore_eos=True)
    assert [r.tokens for r in both] == [[AGAIN] * 20] * 2


def test_what_it_is_sure_of_stands_whatever_the_model_says_behind_it(bundle: Bundle) -> None:
    """Plain repeats 4; the placeholders are sure of another token."""
    engine = free(bundle.path)
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    assert engine.generate([5, 4], recipe="plain", **options).tokens == [4] * 12
    tokens = engine.generate([5, 4], **options).tokens
    assert tokens[:3] == [4, 4, AGAIN], "its own token first"
    assert set(tokens) == {4, AGAIN}


def test_judged_as_drafts_units_are_exact(bundle: Bundle) -> None:
    """PPD's drafter and rule over the same graph, which verify what is foretold."""
    engine = free(bundle.path)
    options: dict[str, Any] = {"max_new_tokens": 16, "ignore_eos": True, "recipe": "ppd"}
    for last in (4, AGAIN):
        assert engine.generate([5, last], **options).tokens == [last] * 16


def test_a_model_without_such_a_token_is_refused_before_its_export(
    known_checkpoints: dict[Path, Any], tmp_path: Path
) -> None:
    for mask, said in ((None, "neither its config nor its tokenizer names"), (260, "260 is not")):
        path = path_of(tmp_path, f"mask-{mask}")
        known_checkpoints[path] = Trained(path, WIDE, mask_token=mask)
        with pytest.raises(GraftlineError, match=said):
            optimize(path, tmp_path / "out.graft", recipe="lud")


def test_it_says_that_it_is_lossy() -> None:
    assert not recipe("lud").lossless
