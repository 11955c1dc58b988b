"""How often multi-draft acceptance can succeed at one position, and how often each rule does.

For recorded laws p (target) and q (draft), both [V] float64, and k drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.acceptance.stochastic import residual
from graftline.runtimes.rules.block import Contest
from graftline.runtimes.rules.k_sequential import beta, threshold

Doubles = npt.NDArray[np.float64]


def bound(p: Doubles, q: Doubles, k: int, replacement: bool) -> float:
    """The most any lossless rule can accept of k drafts: an optimal transport (arXiv 2502.18779).

    By duality it is 1 + min over sets H of p(H) - Q(H), where Q(H) is the chance that all k drafts
    fall into H; the best H holds the tokens with the largest q/p, so V + 1 sets are looked at.
    Q(H) is q(H)^k with replacement. Without, there are no more drafts than tokens in q.
    """
    _check(p, q, k)
    drawn = np.flatnonzero(q)
    p, q = p[drawn], q[drawn]  # a token that is never drawn would only add p to the sum
    with np.errstate(over="ignore"):
        order = np.argsort(p / q)
    masses = np.minimum(np.cumsum(q[order]), 1.0)
    inside = masses**k if replacement else all_inside(q[order], min(k, len(q)))
    return float(min(1.0, 1.0 + (np.cumsum(p[order]) - inside).min()))


def all_inside(q: Doubles, k: int) -> Doubles:
    """For every n, the chance that k draws without replacement from q, which has no zeros, all fall
    into its first n tokens.

    Let token i arrive at a time with rate q[i]: the order of arrival is that of the draws. Fewer
    than k of the first n come before all others with probability (1 - s) times the integral over
    t of exp(-t) (e0 + ... + e(k-1)), where s = q[:n].sum() and ej is the elementary symmetric
    polynomial of degree j of exp(q[i] t) - 1, i < n. The first two terms are known; the others are
    integrated over log t by the trapezoid rule, whose error at this step is below 1e-8.
    """
    masses = np.minimum(np.cumsum(q), 1.0)
    few = np.ones(len(q))
    if k > 1:
        few += np.cumsum(q / np.maximum(1.0 - q, 1e-300))
    if k > 2:
        few += _later_terms(q, k)
    inside = 1.0 - (1.0 - masses) * few
    inside[: k - 1] = 0.0  # fewer than k tokens
    inside[-1] = 1.0
    return np.clip(inside, 0.0, 1.0)


def _later_terms(q: Doubles, k: int, step: float = 0.4) -> Doubles:
    """The integrals of exp(-t) (e2 + ... + e(k-1)) for every n, in logarithms: both factors leave
    the range of floats where few tokens hold nearly all of the mass."""
    slowest = max(1.0 - float(np.sort(q)[::-1][: k - 1].sum()), 1e-9)
    total = np.zeros(len(q))
    for t in np.exp(np.arange(-9.0, np.log(40.0 / slowest), step)):
        odds = q * t + np.log(-np.expm1(-q * t))
        term = np.logaddexp.accumulate(odds)
        for _ in range(2, k):
            earlier = np.concatenate(([-np.inf], term[:-1]))
            term = np.logaddexp.accumulate(odds + earlier)
            total += step * t * np.exp(term - t)
    return total


def token_wise(p: Doubles, q: Doubles, k: int = 1) -> float:
    """Acceptance of the first of k drafts by rejection (arXiv 2211.17192)."""
    return min(1.0, float(np.minimum(p, q).sum()))


def recursive(p: Doubles, q: Doubles, k: int) -> float:
    """Acceptance of k drafts with replacement by recursive rejection (arXiv 2305.09781)."""
    refused = 1.0
    for _ in range(k):
        refused *= 1.0 - token_wise(p, q)
        p = residual(p, q)
    return 1.0 - refused


def recursive_without(p: Doubles, q: Doubles, k: int, samples: int = 64, seed: int = 0) -> float:
    """Acceptance of k drafts without replacement by recursive rejection (arXiv 2402.14160).

    An unbiased estimate for k > 1: which drafts are refused is drawn, seeded, from the law of
    refused drafts, max(q - p, 0); how often each is, is exact.
    """
    k = min(k, int(np.count_nonzero(q)))
    generator = np.random.default_rng(seed)
    accepted = 0.0
    for _ in range(samples if k > 1 else 1):
        left, law, refused = p, q, 1.0 - token_wise(p, q)
        for _ in range(k - 1):
            excess = np.cumsum(np.maximum(law - left, 0.0))
            if refused <= 0.0 or excess[-1] <= 0.0:
                break
            token = int(np.searchsorted(excess, generator.random() * excess[-1], side="right"))
            left, law = residual(left, law), law.copy()
            law[token] = 0.0
            law /= law.sum()
            refused *= 1.0 - token_wise(left, law)
        accepted += 1.0 - refused
    return accepted / (samples if k > 1 else 1)


def k_sequential(p: Doubles, q: Doubles, k: int) -> float:
    """Acceptance of k drafts with replacement by K-SEQ (arXiv 2310.15141)."""
    return 1.0 - (1.0 - min(1.0, beta(p, q, threshold(p, q, k)))) ** k


def contests(p: Doubles, q: Doubles, k: int) -> float:
    """Acceptance of k drafts with replacement by `GreedyMultipathBlock`, on paths of one token."""
    refused = 1.0
    while k > 0:
        contest = Contest.between(p, q, k)
        refused *= 1.0 - token_wise(p, contest.q)
        p = residual(p, contest.q)
        k -= contest.entrants
    return 1.0 - refused


ACCEPTANCE: dict[str, Callable[[Doubles, Doubles, int], float]] = {
    "rejection of one draft": token_wise,
    "rejection": recursive,
    "rejection without replacement": recursive_without,
    "k-sequential": k_sequential,
    "block": recursive,
    "greedy-multipath-block": contests,
}
"""By rule: the chance that one of k drafts stands. Rules that judge whole paths are taken on paths
of one token, where `block` is recursive rejection. Drafts have replacement unless said."""


def acceptance(rule: str, p: Doubles, q: Doubles, k: int) -> float:
    """The chance that `rule` accepts one of k drafts. Raises GraftlineError for an unknown rule."""
    if rule not in ACCEPTANCE:
        raise GraftlineError(f"the oracle knows no rule '{rule}'{nearest(rule, ACCEPTANCE)}")
    _check(p, q, k)
    return ACCEPTANCE[rule](p, q, k)


def rates(p: Doubles, q: Doubles, k: int) -> dict[str, float]:
    """The acceptance of every rule, and the two bounds, on k drafts from q."""
    found = {rule: acceptance(rule, p, q, k) for rule in ACCEPTANCE}
    found["bound"] = bound(p, q, k, replacement=True)
    found["bound without replacement"] = bound(p, q, k, replacement=False)
    return found


def mean_rates(pairs: Iterable[tuple[Doubles, Doubles]], k: int) -> dict[str, float]:
    """`rates` averaged over recorded pairs (p, q). Raises GraftlineError when there are none."""
    found = [rates(p, q, k) for p, q in pairs]
    if not found:
        raise GraftlineError(
            "the oracle has no recorded distributions; run a recipe whose drafts are sampled"
        )
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def _check(p: Doubles, q: Doubles, k: int) -> None:
    if p.shape != q.shape or p.ndim != 1:
        raise GraftlineError(
            f"the oracle compares two distributions over one vocabulary; got shapes {p.shape} "
            f"and {q.shape}"
        )
    if k < 1:
        raise GraftlineError(f"the oracle needs at least one draft; got k={k}")
