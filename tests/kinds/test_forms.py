"""Other forms of a decoder's step are held to the step itself, with the real weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import MACHINE
from graftline.errors import BackendError, LawBroken
from graftline.passes.lower.ort import pack_rows
from graftline.runtimes.load import load


@pytest.mark.parametrize("recipe", ["plain", "token-recycling"])
def test_every_form_is_the_engines_own_step(
    tiny_checkpoint: Path, tmp_path: Path, recipe: str
) -> None:
    manifest = optimize(tiny_checkpoint, tmp_path / "tiny.graft", recipe=recipe).manifest
    forms = manifest.of_role("form")
    chains = ["chains"] if recipe != "plain" else []  # without trees there is no mask to leave out
    assert list(forms) == [*chains, "rows-2", "rows-4", "rows-8"]
    laws = {row.graft: row for row in manifest.laws if row.law == "form"}
    assert laws.keys() == forms.keys()
    assert {row.status for row in laws.values()} == {"held"}


def test_weights_that_were_laid_out_for_another_bundle_are_not_used(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A bundle that takes another one's place, with what that one had laid out still there."""
    first = optimize(tiny_checkpoint, tmp_path / "first.graft", recipe="plain")
    load(first.path)
    (mine,) = (first.path / MACHINE).iterdir()
    second = optimize(tiny_checkpoint, tmp_path / "second.graft", recipe="plain")
    shutil.copytree(first.path / MACHINE, second.path / MACHINE)
    load(second.path)
    found = {folder.name for folder in (second.path / MACHINE).iterdir()}
    assert len(found) == 2
    assert mine.name in found


@pytest.mark.parametrize("fault", ["_lengths", "_cache"])
def test_a_form_that_mixes_sequences_up_is_not_written(
    fault: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lengths(self: pack_rows.PackRows, *given: Any) -> Any:
        totals, lasts = known(self, *given)
        return totals[::-1], lasts[::-1]

    owner = pack_rows.PackRows if fault == "_lengths" else pack_rows
    known = getattr(owner, fault)
    other = {"_lengths": lengths, "_cache": lambda graph, value, s: known(graph, value, s ^ 1)}
    monkeypatch.setattr(owner, fault, other[fault])
    with pytest.raises((LawBroken, BackendError), match=r"rows-2 breaks the law 'form'|in a step"):
        optimize(tiny_checkpoint, tmp_path / "tiny.graft", recipe="plain")
    assert not (tmp_path / "tiny.graft").exists()
