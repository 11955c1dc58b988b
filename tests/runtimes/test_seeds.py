"""When one seed gives one text, and that the documentation says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from toy_drafts import CheckedDraft, engine_of, policy
from toy_session import FLAT, INT4, ToySession

from graftline.recipe import Recipe, recipe, recipes
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.engine import Engine

ROOT = Path(__file__).parents[2]
DRAWN = ("rejection", "k-sequential", "block", "greedy-multipath-block")
"""Rules for drafts that are drawn."""
CERTAIN = ["plain", "suffix", "token-recycling", "jacobi", policy(rows=6)]
RANDOM = [policy("draft-model", "rejection", rows=6, sampled=True), "sjd"]


def texts(chosen: str | Recipe, costs: Costs | None) -> list[list[int]]:
    """Twice each, on one engine that learns meanwhile."""
    if isinstance(chosen, Recipe):
        engine = engine_of([], lambda _: CheckedDraft(), chosen, costs)
    else:
        engine = Engine(ToySession(), None, {}, recipe(chosen), costs)
    options: dict[str, Any] = {"max_new_tokens": 50, "ignore_eos": True, "temperature": 0.9}
    return [
        engine.generate([1, 2, 3, 1, 2], seed=seed, **options).tokens for seed in [*range(6)] * 2
    ]


@pytest.mark.parametrize("chosen", CERTAIN, ids=str)
def test_one_seed_is_one_text_where_drafts_are_certain(chosen: str | Recipe) -> None:
    """Whatever steps cost, so whatever is drafted."""
    first = texts(chosen, FLAT)
    assert first[:6] == first[6:] == texts(chosen, INT4)[:6] == texts(chosen, None)[:6]


@pytest.mark.parametrize("chosen", RANDOM, ids=str)
def test_where_drafts_are_drawn_it_depends_on_how_many(chosen: str | Recipe) -> None:
    """Should this fail because they are equal, the README may promise more."""
    first, *others = (texts(chosen, costs)[:6] for costs in (FLAT, INT4, None))
    assert any(other != first for other in others)


def test_the_readme_lists_them() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    told = text[text.index("One `seed` gives") : text.index("### Conversations")]
    drawn, near = (set(re.findall(r"`([^`]+)`", part)) for part in told.split("accept what")[:2])
    assert drawn - {"seed", "exact"} == {r.name for r in recipes() if r.rule in DRAWN}
    lossy = {r.name for r in recipes() if not r.lossless and not r.schedule}
    assert near == lossy, "of those that draft"
