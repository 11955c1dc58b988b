"""The single pass of lossy rules decides as the definition in double precision does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from graftline.errors import BackendError
from graftline.runtimes.acceptance.lenient import Place, dense
from graftline.runtimes.acceptance.odds import Odds
from graftline.runtimes.acceptance.token_space import TokenSpace, token_space
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.clusters import Clusters, Grouped
from graftline.runtimes.rules.neighbours import Neighbours, Pooled
from graftline.runtimes.rules.threshold import Threshold
from graftline.runtimes.rules.typical import Typical
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.session import Floats, Scores
from tests.rounding import sum_tolerance

V = 500
EMBEDDING = np.random.default_rng(2).normal(size=(V, 6)).astype(np.float32)
SPACE = token_space("test", Resources(embedding=lambda: EMBEDDING), "cosine")
SAMPLINGS = (
    Sampling(),
    Sampling(top_k=20),
    Sampling(top_p=0.9, min_p=0.01),
    Sampling(temperature=0.3),
)


def flat(rng: np.random.Generator) -> Floats:
    return rng.normal(size=V).astype(np.float32)


def peaked(rng: np.random.Generator) -> Floats:
    return (6 * rng.normal(size=V)).astype(np.float32)


def rivals(rng: np.random.Generator) -> Floats:
    """A few tokens share the mass, among them neighbours of one another."""
    logits = rng.normal(size=V).astype(np.float32) - 6
    few = SPACE.nearest(int(rng.integers(V)), 6)
    logits[few] += rng.uniform(5, 7, size=6).astype(np.float32)
    return logits


def tied(rng: np.random.Generator) -> Floats:
    return np.round(rng.normal(size=V) * 3).astype(np.float32)


def masked(rng: np.random.Generator) -> Floats:
    """Most tokens are forbidden, and one is far below."""
    logits = rivals(rng)
    logits[rng.random(V) < 0.7] = -np.inf
    logits[rng.integers(V, size=3)] = 2.0
    return logits


def typical(p: Doubles, own: int, token: int, rule: Typical) -> bool:
    likely = p[p > 0]
    entropy = -float(likely @ np.log(likely))
    return bool(p[token] > min(rule.epsilon, rule.delta * math.exp(-entropy)))


def threshold(p: Doubles, own: int, token: int, rule: Threshold) -> bool:
    return bool(p[token] >= math.exp(-rule.threshold))


def neighbours(p: Doubles, own: int, token: int, rule: Pooled) -> bool:
    moved, changed = 0.0, p.copy()
    for near in rule.space.nearest(token, rule.k):
        if moved + p[near] > rule.bound:
            break
        moved += p[near]
        changed[near] = 0.0
    changed[token] += moved
    return int(np.argmax(changed)) == token


def clusters(p: Doubles, own: int, token: int, rule: Grouped) -> bool:
    return np.count_nonzero(p > p[token]) <= rule.size and own in rule.cluster(p, token)


RULES: list[tuple[Callable[..., bool], list[object]]] = [
    (typical, [Typical(), Typical(0.02, 0.05), Typical(0.9, 0.97)]),
    (threshold, [Threshold(t) for t in (0.5, 2.0, 5.0)]),
    (neighbours, [Pooled(k, b, SPACE) for k in (1, 5, 60) for b in (0.05, 0.2, 0.7)]),
    (clusters, [Grouped(7, 0.15, 0.5, SPACE), Grouped(40, 0.02, 1.2, SPACE)]),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("logits_of", [flat, peaked, rivals, tied, masked])
@pytest.mark.parametrize(("define", "rules"), RULES, ids=[d.__name__ for d, _ in RULES])
def test_as_defined(
    define: Callable[..., bool],
    rules: list[object],
    logits_of: Callable[[np.random.Generator], Floats],
    sampling: Sampling,
) -> None:
    rng = np.random.default_rng(5)
    warm = replace(sampling, temperature=sampling.temperature or 1.0)
    for _ in range(12):
        logits = logits_of(rng)
        own = int(np.argmax(logits))
        scores = Scores(np.array([[own]]), logits[None, None])
        place = Place(scores, 0, 0, own, sampling)
        p = dense(warm, logits)
        best = np.argsort(-p, kind="stable")[1:9].tolist()
        for token in [*best, *rng.integers(V, size=4).tolist()]:
            if token != own:
                for rule in rules:
                    wanted = define(p, own, token, rule)
                    assert rule.stands(place, 1, token) == wanted, (rule, p[[own, token]])  # type: ignore[attr-defined]


@pytest.mark.parametrize("logits_of", [flat, rivals, tied])
def test_the_cases_above_are_decided_both_ways(
    logits_of: Callable[[np.random.Generator], Floats],
) -> None:
    """Each of the definitions says yes and no often enough for equality to mean something."""
    rng = np.random.default_rng(5)
    said = {define.__name__: [0, 0] for define, _ in RULES}
    for _ in range(12):
        p = dense(Sampling(1.0), logits_of(rng))
        best = np.argsort(-p, kind="stable").tolist()
        for define, rules in RULES:
            for rule in rules:
                for token in (best[1], best[3], best[300]):
                    said[define.__name__][int(define(p, best[0], token, rule))] += 1
    assert min(min(counts) for counts in said.values()) >= 3, said


def test_a_pass_is_the_softmax() -> None:
    rng = np.random.default_rng(1)
    for logits in (flat(rng), peaked(rng), masked(rng), np.float16(flat(rng))):
        for heat in (1.0, 0.2, 3.0):
            odds, p = Odds.of(logits, heat), dense(Sampling(heat), logits)
            likely = p[p > 0]
            chances = np.array([odds.chance(token) for token in range(V)])
            deepest = float(-np.log(likely.min()))  # an exponent is rounded to so many epsilons
            rounding = sum_tolerance(V) + sum_tolerance(1, deepest)
            np.testing.assert_allclose(chances, p, rtol=rounding, atol=1e-40)
            entropy = -float(likely @ np.log(likely))
            assert odds.entropy == pytest.approx(entropy, abs=rounding * max(1, entropy))
            assert odds.highest == pytest.approx(p.max(), rel=sum_tolerance(V))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_broken_logits_are_no_odds(wrong: float) -> None:
    logits = np.zeros(V, np.float32)
    logits[7] = wrong
    with pytest.raises(BackendError, match="largest logit of"):
        Odds.of(logits)


def test_no_embedding_is_read_where_the_bound_decides() -> None:
    """The neighbours of a token cost a product with every embedding."""
    def unread() -> Floats:
        raise AssertionError("the embedding was read")

    rule = Pooled(16, 0.2, TokenSpace(unread, "cosine"))
    logits = np.full(V, -9.0, np.float32)
    logits[[3, 4]] = 1.0, 0.0  # 0.70 and 0.26, and 0.2 can be moved
    place = Place(Scores(np.array([[3]]), logits[None, None]), 0, 0, 3, Sampling())
    assert not rule.stands(place, 1, 4)
    logits[4] = 0.9  # 0.51 and 0.46
    near = Place(Scores(np.array([[3]]), logits[None, None]), 0, 0, 3, Sampling())
    assert not rule.stands(near, 1, 4)  # the other half is all in one place
    logits[5] = 1.0  # 0.34 twice, and 0.31
    open_ = Place(Scores(np.array([[3]]), logits[None, None]), 0, 0, 3, Sampling())
    with pytest.raises(AssertionError, match="was read"):
        rule.stands(open_, 1, 4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_what_is_said_to_be_far_is_not_among_the_nearest(metric: str) -> None:
    rng = np.random.default_rng(3)
    centres = 3 * rng.normal(size=(40, 8))
    rows = (centres[rng.integers(40, size=3000)] + rng.normal(size=(3000, 8))).astype(np.float32)
    space = TokenSpace(lambda: rows, metric)
    far = 0
    for token in rng.integers(3000, size=150).tolist():
        near = space.nearest(token, 16)
        others = rng.integers(3000, size=5)
        far += not space.may_be_near(token, others, 16)
        assert space.may_be_near(token, others, 16) or not np.isin(others, near).any()
        for one in near[[0, 7, 15]].tolist():
            assert space.may_be_near(token, np.array([*others, one]), 16)
        assert space.may_be_near(token, others, 3000)
    assert far > 100


def test_the_options_make_these_rules() -> None:
    """What is tested above is what `of` hands out."""
    resources = Resources(embedding=lambda: EMBEDDING)
    for options in (Neighbours(), Clusters()):
        assert not options.of(Sampling(), np.random.default_rng(0), resources).lossless
