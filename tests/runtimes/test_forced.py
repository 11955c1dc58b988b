"""Drafts of a given quality: what comes of each depth is near what was asked, and nothing else is
other than it was."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import pytest
from test_hydra import Adding
from test_medusa import HIDDEN, Known, scores_of
from toy_drafts import CheckedDraft, engine_of, policy

from graftline.errors import RequestError
from graftline.recipe import recipe
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_alone
from graftline.runtimes.resources import Resources
from graftline.runtimes.study.forced import (
    ForcedDrafter,
    Forcing,
    check_forcing,
    forced_resources,
    parse_rates,
)
from graftline.runtimes.verdict import Verdict, walk
from graftline.tree import Tree

RATES = (0.8, 0.5, 0.65)


def assert_near(forcing: Forcing, rates: Sequence[float], depths: int) -> None:
    """Within 4 standard deviations of as many trials."""
    assert len(forcing.outcomes) >= depths
    for (drafts, hits), rate in zip(forcing.outcomes[:depths], rates, strict=True):
        assert drafts >= 40
        assert abs(hits / drafts - rate) < 4 * sqrt(rate * (1 - rate) / drafts)


def test_candidates_are_put_right_or_wrong_behind_what_the_target_writes() -> None:
    right, wrong = Forcing((1.0, 0.0), answer=[5, 6, 7]), Forcing((0.0,), answer=[5, 6, 7])
    assert right.candidates([], [1, 2, 3]) == [5, 1, 2]
    assert right.candidates([], [1, 5, 3]) == [5, 1, 3]
    assert right.candidates([5], [6, 1, 2]) == [1, 2, 0], "the second depth never is"
    assert wrong.candidates([], [5]) == [0]
    assert wrong.candidates([], [1, 2, 3]) == [1, 2, 3]
    assert right.candidates([9], [6, 1]) == [6, 1], "the target does not write 9"
    assert right.candidates([5, 6, 7], [1, 2]) == [1, 2], "what comes then is not known"
    right.written = 1
    assert right.candidates([], [1, 2]) == [6, 1]


@pytest.mark.parametrize("rates", [RATES, (0.9,)])
def test_a_draft_models_tokens_are_as_good_as_asked_and_all_calls_are_made(
    rates: tuple[float, ...],
) -> None:
    drafts: list[CheckedDraft] = []
    engine = engine_of(drafts, lambda _: CheckedDraft(odd=2), policy(), None)
    options: Any = {"max_new_tokens": 300, "ignore_eos": True}
    plain: Any = engine.generate([5, 9, 2], recipe="plain", **options)
    forcing = Forcing(rates, 3, plain.tokens)
    engine.force(engine.recipe, forcing)
    before = len(drafts[0].calls)
    found: Any = engine.generate([5, 9, 2], **options)
    assert found.tokens == plain.tokens
    assert len(drafts[0].calls) - before >= found.stats.drafted > 0
    assert_near(forcing, [*rates, rates[-1]][:2], 2)
    again = Forcing(rates, 3, plain.tokens)
    engine.force(engine.recipe, again)
    engine.generate([5, 9, 2], **options)
    assert again.outcomes == forcing.outcomes, "seeded"


@pytest.mark.parametrize(("name", "heads"), [("medusa", Known()), ("hydra", Adding())])
def test_heads_are_as_good_as_asked(name: str, heads: Any) -> None:
    answer: list[int] = np.random.default_rng(1).integers(0, 40, 3000).tolist()
    forcing = Forcing(RATES, 3, answer)
    inner = make_drafter(name, {}, forced_resources(Resources(head=lambda: heads), forcing))
    drafter: Any = ForcedDrafter(inner, forcing)
    drafter.start([1, 2, 3])
    drafter.observe(Tree.chain((3,)), Verdict((0,), answer[0]), scores_of([answer[0]]), 0)
    written = 1
    while written < 2900:
        tree = draft_alone(drafter.draft(Bid.free(12)))
        assert tree.tokens[0] == answer[written - 1]
        rest = answer[written:]
        verdict = walk(tree, lambda node, tree=tree, rest=rest: rest[int(tree.depth[node])])
        drafter.observe(tree, verdict, scores_of([answer[written]] * len(tree)), 0)
        written += len(verdict.tokens(tree))
    assert heads.hidden == HIDDEN
    assert_near(forcing, RATES, 3)


@pytest.mark.parametrize("text", ["", "0.5,", "much", "1.2", "-0.1,0.5", "nan"])
def test_rates_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"takes numbers from 0 to 1 joined by commas"):
        parse_rates(text)


def test_where_nothing_can_be_forced_it_is_said() -> None:
    assert parse_rates("0.7,1") == (0.7, 1.0)
    names = ("eagle-2", "eagle-3", "hydra", "medusa", "draft-model", "medusa-suffix")
    able = [recipe(name) for name in names]
    check_forcing(able, 0.0, "host", False)
    with pytest.raises(RequestError, match="recipe suffix come from no draft engine or head"):
        check_forcing([*able, recipe("suffix")], 0.0, "host", False)
    with pytest.raises(RequestError, match="leave out --temperature and --oracle"):
        check_forcing(able, 0.5, "host", False)
    with pytest.raises(RequestError, match="use --step host"):
        check_forcing(able, 0.0, "fused", False)
