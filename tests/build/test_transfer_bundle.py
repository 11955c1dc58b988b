"""A bundle whose target makes states of the tokens to come: proven and checked, drafts for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError, LawBroken
from graftline.passes.grafts import hidden_transfer
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.markov_host import HIDDEN, Repeating, path_of
from tests.ppd_files import seeded as prompt_tokens
from tests.ppd_files import write_ppd
from tests.tiny_checkpoints import WIDE
from tests.transfer_files import seeded, write_transfers

PROMPTS = [[7, 8, 9], [4, 5], [1, 9, 9, 9]]
BLOCKS = WIDE.layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def repeating(known_checkpoints: dict[Path, Any], folder: Path) -> Repeating:
    path = path_of(folder, "repeating")
    known_checkpoints[path] = found = Repeating(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(repeating: Repeating, folder: Path) -> Bundle:
    """Over a host that says the last token for ever, whose states to come are those that it has."""
    same = [np.eye(HIDDEN, dtype=np.float32)] * 3
    head = write_transfers(folder / "right", same, 1, BLOCKS)
    return optimize(repeating.path, folder / "right.graft", head=str(head))


@pytest.fixture(scope="module")
def seeded_bundle(wide_checkpoint: Path, folder: Path) -> Bundle:
    """Matrices that know nothing, over a host that nobody knows."""
    head = write_transfers(folder / "seeded", seeded(HIDDEN), 1, BLOCKS)
    return optimize(wide_checkpoint, folder / "seeded.graft", head=str(head))


def test_no_engine_is_beside_the_targets(right: Bundle) -> None:
    manifest = right.manifest
    assert (manifest.recipe, manifest.decoder.placeholders) == ("hidden-transfer", 3)
    assert "--recipe hidden-transfer" in manifest.rebuild
    assert set(manifest.engines()) == {"target"}
    held = {(row.graft.partition("{")[0], row.law) for row in manifest.laws if row.status == "held"}
    assert ("hidden-transfer", "pseudo-states") in held
    assert ("chains", "form") in held, "with placeholders at the ends of its chains"
    assert check(right.path).holds, "the matrices are in the bundle, and it is made again"


@pytest.mark.parametrize("branches", [True, False], ids=["trees", "chains"])
def test_what_is_foretold_is_accepted_to_its_end(right: Bundle, branches: bool) -> None:
    """Three states to come and the target's own token: every full step gives four."""
    engine = free(right.path)
    session: Any = engine.session
    session._tree = branches
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        assert result.tokens == [prompt[-1]] * 41
        assert result.stats.mat > (2.5 if branches else 1.5)


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


def test_a_form_that_reads_another_row_is_caught(
    repeating: Repeating, folder: Path, right: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of chains, which has no mask, finds rows in a way of its own."""
    wrong = hidden_transfer._SEEN_IN_CHAIN.replace("LessOrEqual", "Greater")
    monkeypatch.setattr(hidden_transfer, "_SEEN_IN_CHAIN", wrong)
    with pytest.raises(LawBroken, match="'form'"):
        optimize(repeating.path, folder / "wrong.graft", head=str(folder / "right"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "hidden-transfer"}, "recipe hidden-transfer needs a draft head; add --head"),
        ({"head": "HEAD", "recipe": "ppd"}, "placeholders needs a head of embeddings"),
        ({"head": "PPD", "recipe": "hidden-transfer"}, "hidden-transfer needs matrices that make"),
        ({"head": "HEAD:int8"}, "matrices are part of .* in the target's precision; give .*head$"),
        ({"head": "HEAD", "passes": "kv-cache"}, "put hidden-transfer into --passes"),
        ({"head": "HEAD", "step": "fused"}, "a fused step drafts by .* not by ppd"),
    ],
)
def test_what_does_not_go_together_is_refused(
    repeating: Repeating, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    head = write_transfers(tmp_path / "head", seeded(HIDDEN), 1, BLOCKS)
    other = write_ppd(tmp_path / "ppd", prompt_tokens(HIDDEN))
    given = {k: v.replace("HEAD", str(head)).replace("PPD", str(other)) for k, v in options.items()}
    with pytest.raises(GraftlineError, match=message):
        optimize(repeating.path, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_few_bits_foretell_as_well(repeating: Repeating, folder: Path, right: Bundle) -> None:
    bundle = optimize(
        repeating.path, folder / "int8.graft", head=str(folder / "right"), dtype="int8"
    )
    result = free(bundle.path).generate([7, 9], max_new_tokens=40, ignore_eos=True)
    assert result.tokens == [9] * 40
    assert result.stats.mat > 3.0
    assert load(bundle.path).generate([7, 9], max_new_tokens=8, ignore_eos=True).tokens == [9] * 8
