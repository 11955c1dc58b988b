"""LANTERN's and GSD's rules when sampling: sums by hand, and the law at the strict end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lossy import DICED, LOOSE, STRICT, V, logits_of, rule
from scipy import stats

from graftline.runtimes.resources import Resources
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.tree import Draws, Tree


def test_neighbours_pool_the_nearest_within_the_bound() -> None:
    """Drafted 7; its neighbours in order are 9, 5 and 3."""
    plane = np.zeros((V, 2), np.float32)
    plane[:, 0] = 100 + np.arange(V)
    plane[[7, 9, 5, 3], 0] = 0, 1, 2, 3
    resources = Resources(embedding=lambda: plane)
    scores = logits_of([{5: 0.4, 7: 0.3, 9: 0.2, 3: 0.09}, {2: 0.9}])
    for bound, stood in ((0.05, False), (0.2001, True)):  # 0.3 and 0.2 make it better than 5
        made = make_rule(
            "neighbours", Sampling(), np.random.default_rng(0),
            {"k": 3, "bound": bound, "metric": "euclidean"}, resources,
        )  # fmt: skip
        assert (len(made.judge(Tree.chain([1, 7]), scores, 0).path) == 2) == stood
    sampled = make_rule(
        "neighbours", Sampling(1.0), np.random.default_rng(0),
        {"k": 3, "bound": 0.6001, "metric": "euclidean"}, resources,
    )  # fmt: skip
    out = [sampled.judge(Tree.chain([1, 7]), scores, 0) for _ in range(4000)]
    kept = [verdict for verdict in out if len(verdict.path) == 2]
    assert len(kept) / 4000 == pytest.approx(0.9, abs=0.02)  # 0.3 + 0.2 + 0.4 of 9 and 5
    assert {verdict.next for verdict in out if len(verdict.path) == 1}.isdisjoint({5, 7, 9})


def test_clusters_weigh_what_the_draft_gave_them() -> None:
    """p(C) / q(C) = (0.3 + 0.4 + 0.2) / (0.6 + 0.4) for C = 7, 5, 9; of 7 alone it is 0.3 / 0.6."""
    q = np.zeros(V)
    q[[7, 5]] = 0.6, 0.4
    tree = Tree(np.array([1, 7]), np.array([-1, 0]), draws={0: Draws(q, (1,))})
    scores = logits_of([{5: 0.4, 7: 0.3, 9: 0.2, 3: 0.09}, {2: 0.9}])
    options = {"size": 1, "gap": 0.11, "distance": math.inf}
    for near, chance in ((1, 0.9), (0, 0.5)):  # 5 and 9 are a rank away, the gap lets both in
        made = rule("clusters", Sampling(1.0), seed=8, **{**options, "size": near})
        kept = np.mean([len(made.judge(tree, scores, 0).path) == 2 for _ in range(4000)])
        assert kept == pytest.approx(chance, abs=0.025)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("name", DICED)
def test_the_strict_end_of_diced_rules_has_the_targets_law(name: str, replacement: bool) -> None:
    """Chi-square of the first token behind two draws; at the loose end the law is another."""
    generator, p = np.random.default_rng(1), {5: 0.5, 7: 0.2, 9: 0.2, 3: 0.05}
    q = np.full(V, 0.0)
    q[[5, 7, 9, 8]] = 0.1, 0.5, 0.2, 0.2
    scores, counts = logits_of([p, {2: 0.9}, {2: 0.9}]), {}
    for end in (STRICT[name], LOOSE[name]):
        made, seen = rule(name, Sampling(1.0), seed=4, **end), np.zeros(V)
        for _ in range(3000):
            drawn = generator.choice(V, 2, replace=replacement, p=q)
            ids = drawn[:1] if drawn[0] == drawn[1] else drawn
            order = (1, len(ids))
            tree = Tree(np.array([1, *ids]), np.array([-1, *(0 for _ in ids)]),
                        draws={0: Draws(q, order, replacement)})  # fmt: skip
            seen[made.judge(tree, scores, 0).tokens(tree)[0]] += 1
        counts[len(counts)] = seen
    law = np.exp(scores.logits[0, 0].astype(np.float64))
    cells = [5, 7, 9, 3]
    expected = np.append(law[cells], 1 - law[cells].sum()) * 3000
    for number, seen in counts.items():
        observed = np.append(seen[cells], seen.sum() - seen[cells].sum())
        pvalue = stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue
        assert (pvalue > 1e-3) if number == 0 else (pvalue < 1e-9)
