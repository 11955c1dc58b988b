"""Jacobi windows change the number of steps and nothing else; what they draw is what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe
from graftline.recipe import recipe as find_recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.jacobi import Jacobi, advance
from graftline.runtimes.drafters.speculative_jacobi import SpeculativeJacobi
from graftline.runtimes.engine import Engine
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

Make = Callable[..., Engine]
V = 5


def policy(drafter: str, rule: str, **options: object) -> Recipe:
    return Recipe(f"{drafter}{options}", "", "", True, (), "", drafter, rule, options)


POLICIES = [
    policy("jacobi", "point-mass", rows=9, refill="copy"),
    policy("jacobi", "point-mass", rows=5, refill="repeat"),
    policy("jacobi", "point-mass", rows=7, refill="random"),
    policy("speculative-jacobi", "rejection", rows=6),
    policy("speculative-jacobi", "point-mass", rows=6, top_k=0, refill="copy"),
]


class Clockwork(ToySession):
    """A toy whose next token mostly follows from the position: what Jacobi iteration is for."""

    def logits_of(self, seen: Ints) -> Floats:
        logits = super().logits_of(seen)
        logits[(int(seen[-1, 0]) * 7) % self.facts.vocabulary] += 9.0 if len(seen) % 4 else 0.0
        return logits


@pytest.mark.parametrize("costs", [None, FLAT], ids=["fixed", "goodput"])
@pytest.mark.parametrize("recipe", POLICIES, ids=lambda r: r.name)
@pytest.mark.parametrize("session", [ToySession, Clockwork])
def test_greedy_output_is_plain(
    prompts: list[list[int]], recipe: Recipe, costs: Costs | None, session: type[ToySession]
) -> None:
    engine = Engine(session(), None, {}, find_recipe("plain"), costs)
    options = {"max_new_tokens": 30}
    plain = engine.generate(prompts[:3], **options)
    batch = engine.generate(prompts[:3], recipe=recipe, **options)
    assert [r.tokens for r in batch] == [r.tokens for r in plain]
    alone = [engine.generate(prompt, recipe=recipe, **options) for prompt in prompts[:3]]
    assert [r.tokens for r in alone] == [r.tokens for r in plain]
    if session is Clockwork:
        assert sum(r.stats.steps for r in alone) < 0.6 * sum(r.stats.steps for r in plain)


@pytest.mark.parametrize("recipe", POLICIES[:3], ids=lambda r: r.name)
def test_sampled_output_of_argmax_guesses_is_plain_token_for_token(
    make_engine: Make, prompts: list[list[int]], recipe: Recipe
) -> None:
    engine = make_engine()
    options = {"max_new_tokens": 30, "ignore_eos": True, "temperature": 0.7, "seed": 4}
    plain = engine.generate(prompts[:4], **options)
    drafted = engine.generate(prompts[:4], recipe=recipe, **options)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]


def scored(best: list[int]) -> Scores:
    logits = np.eye(100, dtype=np.float32)[best][None] * 9
    return Scores(logits.argmax(-1), logits)


def test_the_window_moves_and_keeps_what_rows_behind_the_path_say() -> None:
    assert advance([1, 2, 3, 4], [21, 22, 23], 1, 4) == [23, 4, None, None]
    drafter = Jacobi(rows=5, refill="repeat")
    drafter.start([7, 8])
    assert drafter.propose(5).tokens.tolist() == [8, 8, 8, 8, 8]
    drafter.observe(drafter.propose(5), Verdict((0,), 30), scored([30, 31, 32, 33, 34]), 0)
    assert drafter.propose(5).tokens.tolist() == [30, 31, 32, 33, 34]
    assert drafter.signal == 1  # nothing was as guessed
    drafter.observe(drafter.propose(5), Verdict((0, 1), 40), scored([31, 40, 33, 34, 35]), 0)
    assert drafter.propose(5).tokens.tolist() == [40, 33, 34, 35, 35]
    assert drafter.signal == 3  # 33 and 34 are where they were guessed to be
    assert drafter.prior(3)[2] > drafter.prior(1)[2]


def test_rows_that_were_not_scored_keep_their_guesses() -> None:
    drafter = Jacobi(rows=5, refill="repeat")
    drafter.start([8])
    drafter.observe(drafter.propose(5), Verdict((0,), 30), scored([30, 31, 32, 33, 34]), 0)
    cut = trim(drafter.propose(5), 2)
    drafter.observe(cut, Verdict((0, 1), 32), scored([31, 32]), 0)
    assert drafter.propose(5).tokens.tolist() == [32, 33, 34, 34, 34]


def test_the_end_of_the_window_is_filled_as_asked() -> None:
    copying, drawing = Jacobi(rows=4, refill="copy"), Jacobi(rows=40, refill="random")
    copying.start([1, 2, 3, 4, 1])
    assert copying.propose(4).tokens.tolist() == [1, 2, 3, 4]
    drawing.start([11, 12])
    guesses = drawing.propose(40).tokens[1:].tolist()
    assert set(guesses) == {11, 12}
    assert drawing.propose(9).tokens[1:].tolist() == guesses[:8]  # nested


@pytest.mark.parametrize("refill", ["copy", "repeat", "random"])
def test_proposals_are_nested(refill: str) -> None:
    drafter = Jacobi(rows=12, refill=refill)
    drafter.start(np.random.default_rng(1).integers(0, 9, 50).tolist())
    large = drafter.propose(12)
    for rows in range(1, 13):
        assert drafter.propose(rows).tokens.tolist() == trim(large, rows).tokens.tolist()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("jacobi", {"rows": 1}, "rows=1"),
        ("jacobi", {"refill": "zeros"}, "copy, repeat, random"),
        ("speculative-jacobi", {"top_k": -1}, "top_k=-1"),
        ("speculative-jacobi", {"refill": "x"}, "refill='x'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        make_drafter(name, options)


TABLE = np.random.default_rng(3).normal(scale=1.5, size=(V, V, V)).astype(np.float32)
"""logits[token before last, last]."""


@dataclass
class Chain:
    """Generates with a Markov model of second order, as the loop does with a session."""

    drafter: SpeculativeJacobi
    rows: int

    def tokens(self, count: int, rng: np.random.Generator, rule: str = "rejection") -> list[int]:
        judge, drafter = make_rule(rule, Sampling(1.0), rng), self.drafter.fork()
        context = [0, 1]
        drafter.start(context)
        tree = Tree.chain([1])
        while len(context) < 2 + count:
            seen = [context[-2], *tree.tokens.tolist()]
            logits = np.stack([TABLE[a, b] for a, b in pairwise(seen)])[None]
            best = np.argsort(-logits)[..., :3]
            reduced = np.take_along_axis(logits, best, -1)
            scores = Scores(best[..., 0], logits, best, reduced)
            verdict = judge.judge(tree, scores, 0)
            drafter.observe(tree, verdict, scores, 0)
            context += verdict.tokens(tree)
            tree = trim(drafter.propose(9), self.rows)
        return context[2 : 2 + count]


def pvalue(chain: Chain, seed: int) -> float:
    """Chi-square of the fourth and fifth tokens: by then guesses come from earlier passes."""
    law = np.zeros((V, V))
    law[0, 1] = 1.0
    odds = np.exp(TABLE.astype(np.float64))
    odds /= odds.sum(-1, keepdims=True)
    for _ in range(5):
        law = np.einsum("ab,abc->bc", law, odds)
    rng, seen = np.random.default_rng(seed), np.zeros((V, V))
    for _ in range(2000):
        a, b = chain.tokens(5, rng)[3:]
        seen[a, b] += 1
    return float(stats.chisquare(seen.ravel(), law.ravel() * seen.sum()).pvalue)


@pytest.mark.parametrize(
    ("options", "rows"),
    [({"top_k": 0}, 9), ({"top_k": 0}, 3), ({"top_k": 2}, 9)],
)
def test_drawn_guesses_keep_the_targets_distribution(options: dict[str, int], rows: int) -> None:
    drafter = SpeculativeJacobi(rows=5, refill="copy", seed=1, **options)
    assert pvalue(Chain(drafter, rows), 2) > 1e-3


def test_one_stream_for_all_forks_would_be_seen() -> None:
    """Why a fork draws from its own stream: with one for all, drafts repeat between requests."""

    class Shared(SpeculativeJacobi):
        def fork(self) -> SpeculativeJacobi:
            return SpeculativeJacobi(self.rows, self.top_k, self.refill, 5)

    assert pvalue(Chain(Shared(rows=5, top_k=0), 9), 2) < 1e-9


def test_draws_name_the_distribution_and_the_signal_is_known_before_them() -> None:
    drafter = SpeculativeJacobi(rows=4, top_k=2, refill="repeat")
    drafter.start([0, 1])
    assert drafter.propose(4).draws is None
    logits = TABLE[0][None, :4]
    drafter.observe(drafter.propose(4), Verdict((0,), 2), Scores(logits.argmax(-1), logits), 0)
    trees = [drafter.propose(4) for _ in range(300)]
    signals = {drafter.signal for _ in range(50) if len(drafter.propose(4))}
    assert len(signals) == 1
    assert len({tuple(tree.tokens.tolist()) for tree in trees}) > 2
    draws = trees[0].draws
    assert draws is not None
    assert sorted(draws) == [0, 1, 2]
    for place in range(3):
        ids, probs = Sampling(1.0, top_k=2).distribution(logits[0, place + 1])
        assert draws[place].probs[ids].tolist() == pytest.approx(probs.tolist())
        share = np.mean([tree.tokens[place + 1] == ids[0] for tree in trees])  # type: ignore[index]
        assert share == pytest.approx(probs[0], abs=0.1)


def test_a_request_says_how_to_draw(make_engine: Make, prompts: list[list[int]]) -> None:
    """Same seed and rows, same text, whatever was generated before; its filters are those of q."""
    engine, recipe = make_engine(costs=None), policy("speculative-jacobi", "rejection", rows=5)
    options = {"max_new_tokens": 25, "ignore_eos": True, "recipe": recipe, "temperature": 0.9}
    first = engine.generate(prompts[:3], seed=1, **options)
    assert [r.tokens for r in engine.generate(prompts[:3], seed=2, **options)] != [
        r.tokens for r in first
    ]
    again = engine.generate(prompts[:3], seed=1, **options)
    assert [r.tokens for r in again] == [r.tokens for r in first]
    drafter = SpeculativeJacobi(rows=4, top_k=3)
    drafter.sample_with(Sampling(0.5, top_k=2), np.random.default_rng(0))
    drafter.start([0, 1])
    logits = TABLE[0][None, :4]
    scores = Scores(logits.argmax(-1), logits)
    drafter.observe(drafter.propose(4), Verdict((0,), 2), scores, 0)
    draws = drafter.propose(4).draws
    assert draws is not None
    ids, probs = Sampling(0.5, top_k=2).distribution(logits[0, 1])
    assert np.flatnonzero(draws[0].probs).tolist() == ids.tolist()  # type: ignore[union-attr]
    assert draws[0].probs[ids].tolist() == pytest.approx(probs.tolist())
    drafter.sample_with(Sampling(), np.random.default_rng(0))
    drafter.start([0, 1])
    drafter.observe(drafter.propose(4), Verdict((0,), 2), scores, 0)
    greedy = drafter.propose(4)
    assert greedy.draws is None
    assert greedy.tokens[1:].tolist() == logits[0, 1:].argmax(-1).tolist()
