"""A drafter that misbehaves costs speed; under a lossless rule it never changes the output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from misbehaviour import (
    SHAPES,
    Misbehaving,
    MisbehavingModel,
    alone,
    bushy,
    chain,
    drawn,
    elsewhere,
    halves,
    twins,
    unlisted,
)
from scipy import stats
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe, recipes
from graftline.runtimes import decoding
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.engine import Engine
from graftline.runtimes.rules import RULES
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.soundness import sound
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Tree

LOSSLESS = [name for name, kind in RULES.items() if kind.lossless]


@pytest.fixture(autouse=True)
def _misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(DRAFTERS, "misbehaving", Misbehaving)  # type: ignore[arg-type]
    monkeypatch.setitem(DRAFTERS, "misbehaving-model", MisbehavingModel)  # type: ignore[arg-type]
    return


def policy(rule: str, drafter: str = "misbehaving", **options: object) -> Recipe:
    return Recipe(f"{drafter} {rule}{options}", "", "", True, (), "", drafter, rule, options)


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("shape", [*SHAPES, ""])
def test_greedy_output_is_plains(rule: str, shape: str, prompts: list[list[int]]) -> None:
    """Free and paid proposals, one sequence and a ragged batch, a capacity that just suffices."""
    asked = [prompts[0], [7], prompts[2]]
    capacity = max(map(len, asked)) + 16
    for costs in (None, FLAT):
        engine = Engine(ToySession(capacity=capacity), None, {}, recipe("plain"), costs)
        plain = [r.tokens for r in engine.generate(asked, max_new_tokens=16)]
        for drafter in ("misbehaving", "misbehaving-model"):
            one = policy(rule, drafter, shape=shape, seed=5)
            found = engine.generate(asked, max_new_tokens=16, recipe=one)
            assert [r.tokens for r in found] == plain
            assert engine.generate(asked[0], max_new_tokens=16, recipe=one).tokens == plain[0]


TEMPERATURE = 6.0
COUNT = 4000


def law_of(session: ToySession, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Exact chances of three tokens."""

    def after(*more: int) -> np.ndarray:
        ids = [*prompt, *more]
        pairs = np.stack([np.arange(len(ids)), np.asarray(ids)], axis=1)
        return Sampling(TEMPERATURE).distribution(session.logits_of(pairs))[1]

    tokens = range(session.facts.vocabulary)
    return {
        (a, b, c): after()[a] * after(a)[b] * after(a, b)[c]
        for a, b, c in product(tokens, repeat=3)
    }


def p_value(engine: Engine, one: Recipe, law: dict[tuple[int, ...], float]) -> float:
    options = {"max_new_tokens": 3, "temperature": TEMPERATURE, "recipe": one}
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(COUNT // 50):
        found = engine.generate([[1, 2, 3]] * 50, seed=seed, **options)
        seen.update(tuple(r.tokens) for r in found)
    expected = np.asarray(list(law.values())) * COUNT
    assert expected.min() > 3
    return float(stats.chisquare([seen[out] for out in law], expected).pvalue)


@pytest.mark.parametrize("rule", [name for name in LOSSLESS if name != "greedy"])
@pytest.mark.parametrize("drafter", ["misbehaving", "misbehaving-model"])
def test_sampled_output_keeps_its_distribution(rule: str, drafter: str) -> None:
    """Honest and dishonest proposals by turns, three tokens of each sequence."""
    session = ToySession(vocabulary=5, capacity=16, odd=2)
    engine = Engine(session, None, {}, recipe("plain"), None)
    one = policy(rule, drafter, seed=11)
    assert p_value(engine, one, law_of(session, [1, 2, 3])) > 1e-3


def test_a_rule_that_trusts_everything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the first draft as it comes is what the statistic must see."""

    class Trusting(RULES["point-mass"]):  # type: ignore[misc]
        def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
            path = (0, 1) if len(tree) > 1 else (0,)
            return Verdict(path, self._draw(scores, row, path[-1]))

    monkeypatch.setitem(RULES, "trusting", Trusting)
    session = ToySession(vocabulary=5, capacity=16, odd=2)
    engine = Engine(session, None, {}, recipe("plain"), None)
    assert p_value(engine, policy("trusting", seed=11), law_of(session, [1, 2, 3])) < 1e-6


def test_ordinary_proposals_pass_as_they_are() -> None:
    rng = np.random.default_rng(0)
    for tree in (drawn(3, 40, rng), Tree.chain([3, 4, 4]), bushy(3, 10**6, rng), alone(3, 40, rng)):
        assert sound(tree, 3, 10**6 if len(tree) > 100 else 40, 200) is tree


@pytest.mark.parametrize("one", [r for r in recipes() if not r.needs], ids=lambda r: r.name)
def test_our_own_drafters_need_no_mending(
    one: Recipe, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals: list[tuple[Tree, Tree]] = []

    def watched(tree: Tree, root: int, *bounds: Any) -> Tree:
        proposals.append((tree, sound(tree, root, *bounds)))
        return proposals[-1][1]

    monkeypatch.setattr(decoding, "sound", watched)
    try:
        engine = Engine(ToySession(), None, {}, one, None)
    except GraftlineError as error:
        pytest.skip(str(error))
    engine.generate(prompts[:4], max_new_tokens=24, temperature=0.8, seed=1)
    assert proposals or one.drafter == "none"
    assert all(proposed is kept for proposed, kept in proposals)


def test_what_is_left_of_each_shape() -> None:
    def left(tree: Tree, rows: int = 9) -> tuple[list[int], list[int]]:
        made = sound(tree, 3, 50, rows)
        return made.tokens.tolist(), made.parents.tolist()

    rng = np.random.default_rng(0)
    assert left(chain(3, [5, 50, 6])) == ([3, 5], [-1, 0])
    assert left(chain(3, [5, 6, 7]), rows=2) == ([3, 5], [-1, 0])
    assert left(elsewhere(3, 50, rng)) == ([3], [-1])
    assert left(halves(3, 50, rng)) == ([3], [-1])
    for name in ("nan", "infinite", "negative", "unnormalised", "short", "zero", "twice"):
        assert left(SHAPES[name](3, 50, rng)) == ([3], [-1]), name
    for tree in (twins(3, 50, rng), unlisted(3, 50, rng)):
        made = left(tree)
        assert len(set(zip(*made, strict=True))) == len(made[0])


def test_draws_of_one_token_are_counted_to_one_node() -> None:
    """With replacement a token may come twice; to drop such proposals would tilt the rest."""
    law = np.full(50, 0.02)
    draws = {0: Draws(law, (1, 2, 3), True), 2: Draws(law, (4,))}
    tree = Tree(np.asarray([3, 7, 8, 7, 9, 1]), np.asarray([-1, 0, 0, 0, 2, 3]), draws=draws)
    made = sound(tree, 3, 50, 9, whole=True)
    assert made.tokens.tolist() == [3, 7, 8, 9]
    assert made.parents.tolist() == [-1, 0, 0, 2]
    assert made.draws is not None
    assert made.draws[0].order == (1, 2, 1)
    assert made.draws[2].order == (3,)
    assert len(sound(tree, 3, 50, 9)) == 1  # whoever cuts it later would look at what was drawn


def test_whether_draws_fit_does_not_hang_on_what_they_are() -> None:
    """Three draws need three rows, also where two of them are one token and share a node."""
    law = np.full(50, 0.02)
    draws = {0: Draws(law, (1, 2, 1), True)}
    tree = Tree(np.asarray([3, 7, 8]), np.asarray([-1, 0, 0]), draws=draws)
    assert sound(tree, 3, 50, 4, whole=True) is tree
    assert len(sound(tree, 3, 50, 3, whole=True)) == 1


def test_a_cut_leaves_no_drawn_child_behind_as_a_point_mass() -> None:
    """Node 1 was the second draw; without the first, it is not what its distribution gave."""
    draws = {0: Draws(np.full(50, 0.02), (2, 1))}
    tree = Tree(np.asarray([3, 7, 8]), np.asarray([-1, 0, 0]), draws=draws)
    assert len(sound(tree, 3, 50, 2)) == 1
