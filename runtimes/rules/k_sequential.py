"""SpecTr's k-sequential selection: k independent drafts at a node, tried with one threshold."""

from __future__ import annotations

import numpy as np

from graftline.runtimes.acceptance.stochastic import Doubles, Laws
from graftline.runtimes.rules.rejection import Rejection
from graftline.tree import Tree


class KSequential(Rejection):
    """K-SEQ (SpecTr, arXiv 2310.15141) at nodes with independent draws.

    Each of the k draws x from q stands with probability min(1, p(x) / (rho q(x))). With
    beta = sum min(q, p/rho), one stands at all with probability 1 - (1 - beta)^k, and it is x with
    mass min(q, p/rho)(x) (1 - (1 - beta)^k) / beta. That is at most p(x) when the last factor is at
    most rho; the smallest such rho, in [1, k], accepts most. What is missing of p is the residual.

    Other nodes (point masses, draws without replacement) are judged as `Rejection` does.
    """

    def choose(
        self, tree: Tree, tokens: list[int], node: int, laws: Laws
    ) -> tuple[int, int | None]:
        draws = (tree.draws or {}).get(node)
        if draws is None or not draws.replacement or len(draws.order) < 2:
            return super().choose(tree, tokens, node, laws)
        p, q, k = laws.at(node), draws.probs, len(draws.order)
        rho = threshold(p, q, k)
        for child in draws.order:
            token = tokens[child]
            if self.dice.coin(p[token] / (rho * q[token])):
                return token, child
        return self.dice.draw(leftover(p, q, k, rho)), None


def beta(p: Doubles, q: Doubles, rho: float) -> float:
    """The chance that one draw from q stands."""
    return float(np.minimum(q, p / rho).sum())


def threshold(p: Doubles, q: Doubles, k: int) -> float:
    """The smallest rho in [1, k] with 1 - (1 - beta)^k <= rho beta, from above.

    The left side falls and the right one rises with rho; at 1 the left is the larger, at k the
    right. Bisection keeps the upper end, so the selection is exact however early it stops.
    """
    low, high = 1.0, float(k)
    while high - low > 1e-6:
        rho = (low + high) / 2
        one = beta(p, q, rho)
        low, high = (low, rho) if 1 - (1 - one) ** k <= rho * one else (rho, high)
    return high


def leftover(p: Doubles, q: Doubles, k: int, rho: float) -> Doubles:
    """[V], not normalised: p less the mass with which a draw is accepted as each token."""
    one = beta(p, q, rho)
    if one == 0.0:
        return p
    rest = np.maximum(p - np.minimum(q, p / rho) * (1 - (1 - one) ** k) / one, 0.0)
    return rest if rest.any() else p
