"""Token by token: speculative sampling, recursively over the children of a node."""

from __future__ import annotations

from graftline.runtimes.acceptance.stochastic import Laws, StochasticRule, proposal, residual
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


class Rejection(StochasticRule):
    """Speculative sampling (arXiv 2211.17192, 2302.01318), on trees by recursive rejection.

    At a node with target p, the draws x1, x2, ... are tried in order: x drawn from q stands with
    probability min(1, p(x)/q(x)); else p becomes its residual, the positive part of p - q, and
    the next draw is tried; after the last the token comes from what is left. x stands with mass
    min(p, q)(x) and the rest of p comes from the residual, so that the token has law p.

    q is the same at each try for draws with replacement (SpecInfer, arXiv 2305.09781), and without
    the earlier draws, renormalised, for those without (arXiv 2402.14160). A child that is a point
    mass has q = 1: trying all of them one by one is one draw from p, as in `PointMass`.
    """

    def decide(self, tree: Tree, laws: Laws) -> Verdict:
        tokens = tree.token_list
        path = [0]
        while True:
            node = path[-1]
            token, child = self.choose(tree, tokens, node, laws)
            if child is None:
                return Verdict(tuple(path), token)
            path.append(child)

    def choose(
        self, tree: Tree, tokens: list[int], node: int, laws: Laws
    ) -> tuple[int, int | None]:
        """The token after `node`, and the child that carries it, if one does."""
        p = laws.at(node)
        draws = (tree.draws or {}).get(node)
        if draws is None:
            token = self.dice.draw(p)
            return token, next((k for k in tree.children[node] if tokens[k] == token), None)
        for place, child in enumerate(draws.order):
            q = proposal(draws, tokens, place)
            token = tokens[child]
            if self.dice.coin(p[token] / q[token]):
                return token, child
            p = residual(p, q)
        return self.dice.draw(p), None
