"""Acceptance has the target's distribution; a rule made wrong on purpose is caught."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy import stats

from graftline.errors import BackendError, GraftlineError, RequestError
from graftline.runtimes.processors import Shaping
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.shaping import ShapedScores, Shaper
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree

V = 8
TABLE = np.random.default_rng(11).normal(scale=1.3, size=(V + 1, V + 1, V)).astype(np.float32)
"""logits[token before last, last], so a token's law depends on the two before it; V is 'none'."""

# root 3; children 1, 5 and 2; below 1: 0 and 4; below 5: 1; below 1-0: 6
TREE = Tree(np.array([3, 1, 5, 2, 0, 4, 1, 6]), np.array([-1, 0, 0, 0, 1, 1, 2, 4]))


def scores_of(tree: Tree, before: int) -> Scores:
    logits = np.empty((1, len(tree), V), np.float32)
    for node in range(len(tree)):
        parent = int(tree.parents[node])
        above = before if parent < 0 else int(tree.tokens[parent])
        logits[0, node] = TABLE[above, int(tree.tokens[node])]
    return Scores(logits.argmax(-1), logits)


def three_tokens(rule: Rule, scores: Scores) -> tuple[int, ...]:
    """What comes after 3: one judged tree, then plain steps."""
    out = rule.judge(TREE, scores, 0).tokens(TREE)
    context = [3, *out]
    while len(out) < 3:
        root = Tree.chain([context[-1]])
        out += rule.judge(root, scores_of(root, context[-2]), 0).tokens(root)
        context = [3, *out]
    return tuple(out[:3])


def exact_law(sampling: Sampling) -> dict[tuple[int, ...], float]:
    def dense(above: int, last: int) -> np.ndarray:
        ids, probs = sampling.distribution(TABLE[above, last])
        law = np.zeros(V)
        law[slice(None) if ids is None else ids] = probs
        return law

    first = dense(V, 3)
    return {
        (a, b, c): first[a] * dense(3, a)[b] * dense(a, b)[c]
        for a, b, c in product(range(V), repeat=3)
    }


def p_value(draw: Callable[[], tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Chi-square over all sequences of three tokens; rare ones share a cell."""
    count = 20_000
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(count):
        out = draw()
        seen[out] = seen.get(out, 0) + 1
    assert all(law[out] > 0 for out in seen)
    common = [out for out, p in law.items() if p * count >= 8]
    expected = [law[out] * count for out in common]
    observed = [float(seen.get(out, 0)) for out in common]
    if (rest := count - sum(expected)) > 8:
        expected.append(rest)
        observed.append(count - sum(observed))
    scale = sum(observed) / sum(expected)
    return float(stats.chisquare(observed, np.asarray(expected) * scale).pvalue)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.6, top_k=4),
        Sampling(1.3, top_p=0.8),
        Sampling(1.0, min_p=0.15, top_k=6),
    ],
)
def test_point_mass_has_the_targets_distribution(sampling: Sampling) -> None:
    rule = make_rule("point-mass", sampling, np.random.default_rng(5))
    scores = scores_of(TREE, V)
    assert p_value(lambda: three_tokens(rule, scores), exact_law(sampling)) > 1e-3


class AcceptWithoutResidual:
    """Wrong: tries each child with its own probability, then draws from the whole target."""

    def __init__(self) -> None:
        self.rng, self.sampling = np.random.default_rng(5), Sampling(1.0)

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        path = [0]
        while True:
            _, law = self.sampling.distribution(scores.logits[row, path[-1]])
            kids = tree.children[path[-1]]
            taken = next((k for k in kids if self.rng.random() < law[tree.tokens[k]]), None)
            if taken is None:
                return Verdict(tuple(path), int(self.rng.choice(V, p=law)))
            path.append(taken)


def test_a_wrong_rule_is_caught() -> None:
    rule, scores = AcceptWithoutResidual(), scores_of(TREE, V)
    assert p_value(lambda: three_tokens(rule, scores), exact_law(Sampling(1.0))) < 1e-9  # type: ignore[arg-type]


def test_point_mass_accepts_as_often_as_rejection_sampling_can() -> None:
    """The chance to accept some child of the root is the sum of the children's probabilities."""
    rule = make_rule("point-mass", Sampling(1.0), np.random.default_rng(1))
    scores = scores_of(TREE, V)
    _, law = Sampling(1.0).distribution(TABLE[V, 3])
    hits = sum(len(rule.judge(TREE, scores, 0).path) > 1 for _ in range(5000))
    assert hits / 5000 == pytest.approx(law[[1, 5, 2]].sum(), abs=0.03)


def test_greedy_follows_the_best_token() -> None:
    scores = scores_of(TREE, V)
    scores.argmax[0] = [1, 0, 7, 7, 6, 7, 7, 2]
    verdict = make_rule("greedy", Sampling(), np.random.default_rng(0)).judge(TREE, scores, 0)
    assert verdict == Verdict((0, 1, 4, 7), 2)
    assert verdict.tokens(TREE) == [1, 0, 6, 2]


def test_temperature_zero_is_greedy_and_greedy_does_not_sample() -> None:
    generator = np.random.default_rng(0)
    assert type(make_rule("point-mass", Sampling(), generator)).__name__ == "Greedy"
    with pytest.raises(RequestError, match=r"temperature 0\.5"):
        make_rule("greedy", Sampling(0.5), generator)
    with pytest.raises(GraftlineError, match="did you mean 'greedy'"):
        make_rule("gredy", Sampling(), generator)


def reference(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """The filters in full, over the sorted vocabulary, as transformers writes them."""
    z = logits.astype(np.float64).copy()
    z /= s.temperature
    if s.top_k:
        z[z < np.sort(z)[-s.top_k]] = -np.inf
    order = np.argsort(z, kind="stable")
    p = np.exp(z - z.max())
    p /= p.sum()
    if s.top_p < 1:
        p[order[np.cumsum(p[order]) <= 1 - s.top_p]] = 0
        p /= p.sum()
    p[p < s.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7),
        Sampling(1.5, top_k=50),
        Sampling(3.0, top_p=0.97),
        Sampling(1.0, top_p=0.3, top_k=20),
        Sampling(1.0, min_p=0.1),
        Sampling(0.9, top_k=40, top_p=0.9, min_p=0.02),
    ],
)
def test_filters_equal_the_full_definition(sampling: Sampling) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        logits = rng.normal(scale=2.0, size=3000).astype(np.float32)
        ids, probs = sampling.distribution(logits)
        dense = np.zeros(3000)
        dense[slice(None) if ids is None else ids] = probs
        np.testing.assert_allclose(dense, reference(logits, sampling), atol=1e-7)


def test_draw_never_takes_an_impossible_token() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32)
    taken = {Sampling(1.0).draw(logits, u) for u in (0.0, 0.49, 0.51, np.nextafter(1, 0))}
    assert taken == {1, 3}
    with pytest.raises(BackendError, match="nothing to sample"):
        Sampling(1.0).draw(np.full(4, np.nan, np.float32), 0.5)


def test_the_penalty_of_a_node_counts_its_own_path() -> None:
    """Without the penalty the path 1, 1 would stand; having chosen 1 once, 2 is better."""
    tree = Tree.chain([0, 1, 1])
    logits = np.tile(np.array([0.0, 2.0, 1.8, 0.0], np.float32), (1, 3, 1))
    scores = Scores(logits.argmax(-1), logits)
    rule = make_rule("point-mass", Sampling(), np.random.default_rng(0))
    assert rule.judge(tree, scores, 0) == Verdict((0, 1, 2), 1)
    shaper = Shaper(np.zeros(1, np.int64), Shaping(1.5).processors(1, frozenset()))
    assert rule.judge(tree, ShapedScores(scores, tree, shaper), 0) == Verdict((0, 1), 2)
