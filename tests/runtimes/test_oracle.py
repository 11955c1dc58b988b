"""The bounds against linear programmes, the rates against enumeration, and their order."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.stochastic import residual
from graftline.runtimes.study.oracle import (
    ACCEPTANCE,
    Doubles,
    acceptance,
    all_inside,
    bound,
    mean_rates,
    rates,
    recursive_without,
)

Drafts = tuple[int, ...]


def laws(tokens: int, seed: int, spread: float = 0.5) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(tokens, spread), 2)
    return p, q


def drafts(q: Doubles, k: int, replacement: bool) -> dict[Drafts, float]:
    """Every sequence of k drafts and its probability."""
    found: dict[Drafts, float] = {}
    for sequence in product(range(len(q)), repeat=k):
        if replacement:
            found[sequence] = float(np.prod(q[list(sequence)]))
        elif len(set(sequence)) == k:
            left = 1.0 - np.concatenate(([0.0], np.cumsum(q[list(sequence)])[:-1]))
            found[sequence] = float(np.prod(q[list(sequence)] / left))
    return found


def transport(p: Doubles, q: Doubles, k: int, replacement: bool) -> float:
    """The definition: the coupling of drafts and output under which the output is most often a
    draft, as a linear programme over the mass of each (drafts, one of them)."""
    known = drafts(q, k, replacement)
    pairs = [(sequence, token) for sequence in known for token in set(sequence)]
    rows = [[float(pair[0] == sequence) for pair in pairs] for sequence in known]
    rows += [[float(pair[1] == token) for pair in pairs] for token in range(len(p))]
    limits = [*known.values(), *p]
    return -float(linprog(-np.ones(len(pairs)), A_ub=rows, b_ub=limits).fun)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_bound_is_the_optimal_transport(k: int, replacement: bool) -> None:
    for seed in range(8):
        p, q = laws(4, seed, spread=0.2 if seed % 2 else 1.0)
        assert bound(p, q, k, replacement) == pytest.approx(
            transport(p, q, k, replacement), abs=1e-6
        )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_draws_without_replacement_fall_inside_as_enumerated(k: int) -> None:
    """Also where few tokens hold nearly everything, so that exp(-t) underflows by itself."""
    spread = laws(6, 3)[1]
    peaked = np.array([0.6, 0.4 - 1.1e-6, 1e-6, 5e-8, 3e-8, 2e-8])
    for q in (spread, peaked):
        known = drafts(q, k, replacement=False)
        for count, found in enumerate(all_inside(q, k).tolist(), start=1):
            wanted = sum(chance for one, chance in known.items() if max(one) < count)
            assert found == pytest.approx(wanted, abs=1e-6)


def tried(p: Doubles, q: Doubles, k: int) -> float:
    """Recursive rejection of k drafts without replacement, by taking every branch."""
    if k == 0:
        return 0.0
    total = 0.0
    for token in np.flatnonzero(q).tolist():
        stands = min(1.0, p[token] / q[token])
        rest = q * (np.arange(len(q)) != token)
        later = tried(residual(p, q), rest / rest.sum(), k - 1) if rest.any() else 0.0
        total += q[token] * (stands + (1.0 - stands) * later)
    return total


@pytest.mark.parametrize("k", [1, 2, 3])
def test_recursive_rejection_without_replacement_is_estimated(k: int) -> None:
    p, q = laws(5, 2)
    assert recursive_without(p, q, k, samples=3000) == pytest.approx(tried(p, q, k), abs=0.01)


@pytest.mark.parametrize("rule", ["rejection", "k-sequential"])
def test_rates_with_replacement_are_exact(rule: str) -> None:
    """Recursive rejection and K-SEQ by their definitions, draft by draft."""
    p, q = laws(4, 6)
    total = 0.0
    rho = rho_of(p, q, 3) if rule == "k-sequential" else 1.0
    for sequence, chance in drafts(q, 3, replacement=True).items():
        refused, left = 1.0, p
        for token in sequence:
            refused *= 1.0 - min(1.0, left[token] / (rho * q[token]))
            left = p if rule == "k-sequential" else residual(left, q)
        total += chance * (1.0 - refused)
    assert acceptance(rule, p, q, 3) == pytest.approx(total, abs=1e-5)


def rho_of(p: Doubles, q: Doubles, k: int) -> float:
    """By looking at every value, where the rule bisects."""
    grid = np.linspace(1.0, k, 200_001)
    stands = np.minimum(q, p / grid[:, None]).sum(axis=1)
    return float(grid[np.argmax(1 - (1 - stands) ** k <= grid * stands)])


@pytest.mark.parametrize("tokens", [5, 300])
def test_no_rule_beats_its_bound_and_more_drafts_help(tokens: int) -> None:
    for seed in range(6):
        p, q = laws(tokens, seed)
        two, four = rates(p, q, 2), rates(p, q, 4)
        for found in (two, four):
            for rule in ACCEPTANCE:
                limit = "bound without replacement" if "without" in rule else "bound"
                # 64 sampled refusals estimate the one rule without replacement
                assert found[rule] <= found[limit] + (0.05 if "without" in rule else 1e-9), rule
            assert found["rejection of one draft"] < found["rejection"] < found["bound"]
            assert found["bound"] <= found["bound without replacement"] + 1e-9
        assert four["bound"] > two["bound"]
        assert two["k-sequential"] > two["rejection of one draft"]


def test_equal_laws_are_accepted_and_disjoint_ones_are_not() -> None:
    p, _ = laws(50, 1)
    for name, found in rates(p, p, 3).items():
        assert found == pytest.approx(1.0, abs=1e-5), name
    apart = np.zeros(50)
    apart[:25] = 1 / 25
    for name, found in rates(apart, apart[::-1].copy(), 3).items():
        assert found == pytest.approx(0.0, abs=1e-12), name


def test_greedy_targets_and_point_drafts() -> None:
    """A one-hot p is accepted when it is drafted; a one-hot q is one draft, whatever k."""
    q = np.array([0.5, 0.3, 0.2])
    one = np.array([0.0, 1.0, 0.0])
    assert bound(one, q, 2, replacement=True) == pytest.approx(1 - 0.7**2)
    assert bound(one, q, 2, replacement=False) == pytest.approx(0.3 + 0.5 * 0.6 + 0.2 * 0.375)
    assert rates(q, one, 3) == pytest.approx(dict.fromkeys(rates(q, one, 3), 0.3), abs=1e-5)


def test_means_and_refusals() -> None:
    pairs = [laws(8, seed) for seed in (1, 2)]
    found = mean_rates(pairs, 2)
    assert found["bound"] == pytest.approx(
        sum(bound(p, q, 2, replacement=True) for p, q in pairs) / 2
    )
    with pytest.raises(GraftlineError, match="no recorded distributions"):
        mean_rates([], 2)
    with pytest.raises(GraftlineError, match=r"did you mean 'k-sequential'"):
        acceptance("k-seqential", *pairs[0], 2)
    with pytest.raises(GraftlineError, match="k=0"):
        bound(*pairs[0], 0, replacement=True)
    with pytest.raises(GraftlineError, match="one vocabulary"):
        bound(pairs[0][0], np.ones(3) / 3, 2, replacement=True)
