"""A drafted path judged as a whole: block verification, on chains and over the paths of a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graftline.runtimes.acceptance.stochastic import (
    Doubles,
    Laws,
    StochasticRule,
    point,
    proposal,
)
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass(frozen=True)
class Stage:
    """A node of a drafted path: the law `p` [V] of what follows it, the weight `w` it is reached
    with, and the law `q` [V] its successor on the path was drawn from; None at the path's end."""

    node: int
    p: Doubles
    w: float
    q: Doubles | None


class Block(StochasticRule):
    """Block verification (arXiv 2403.10444) of one path after another.

    Of a path X1 ... XL with conditional laws q, let w0 = 1 and wi = min(1, w(i-1) p(Xi)/q(Xi)).
    From the end, the prefix of length i is kept with probability hi, where hL = wL and
    hi = e / (e + 1 - wi) with e = sum max(wi p - q, 0), both after X1 ... Xi. Then a prefix of
    length i or more is kept with probability wi given X1 ... Xi: by induction from the end that is
    s + (1 - s) hi with s = sum min(wi p, q), and 1 - s = e + 1 - wi. So after X1 ... Xi a token x
    follows with mass min(wi p, q)(x) from the path and max(wi p - q, 0)(x) from the residual: with
    law p, for every law q the path was drawn from.

    Where the path stops with draws left untried, the residual takes the place of p and the next
    path through that node is verified, in the order of its draws. On a chain this is the published
    rule; on a tree it never accepts less than that rule on the first path. With paths of one token
    it is recursive rejection. A point mass has q = 1.
    """

    def decide(self, tree: Tree, laws: Laws) -> Verdict:
        tokens = tree.token_list
        tried = [0] * len(tree)
        path, p = [0], laws.at(0)
        while True:
            stages = self._follow(tree, tokens, path[-1], p, laws, tried)
            kept = self._keep(stages)
            path += [stage.node for stage in stages[1 : kept + 1]]
            p = rest(stages[kept])
            if not untried(tree, path[-1], tried):
                return Verdict(tuple(path), self.dice.draw(p))

    def _follow(
        self, tree: Tree, tokens: list[int], node: int, p: Doubles, laws: Laws, tried: list[int]
    ) -> list[Stage]:
        """The stages of the next path from `node`, whose successor has law `p`."""
        stages: list[Stage] = []
        w = 1.0
        while w > 0.0 and (count := untried(tree, node, tried)):
            child, q, used = self.pick(tree, tokens, node, count, w * p)
            tried[node] += used
            stages.append(Stage(node, p, w, q))
            w = min(1.0, w * float(p[tokens[child]] / q[tokens[child]]))
            if w > 0.0:  # else it cannot stand, and what would follow is nobody's to know
                p = laws.at(child)
            node = child
        return [*stages, Stage(node, p, w, None)]

    def pick(
        self, tree: Tree, tokens: list[int], node: int, count: int, wanted: Doubles
    ) -> tuple[int, Doubles, int]:
        """The child of `node` that the path goes to, the law [V] of its token, and how many of
        the `count` untried draws that has used. `wanted` [V]: the target's mass."""
        draws = (tree.draws or {}).get(node)
        if draws is None:
            child = tree.children[node][-count]
            return child, point(tokens[child], len(wanted)), 1
        place = len(draws.order) - count
        return draws.order[place], proposal(draws, tokens, place), 1

    def _keep(self, stages: Sequence[Stage]) -> int:
        """How many tokens of the path stand."""
        for place in range(len(stages) - 1, 0, -1):
            if self.dice.coin(keeping(stages[place])):
                return place
        return 0


class GreedyMultipathBlock(Block):
    """Block verification of the best of several paths (GBV, arXiv 2602.16961).

    Where a node has m untried independent draws from q, the path goes to the one that the target
    wants most: tokens are ranked by p/q, and with F the mass of q on better ones, x is the best of
    n draws with probability (1 - F(x))^n - (1 - F(x) - q(x))^n: that is the law the path was drawn
    from, and block verification is exact for any. n, at most m, is chosen before looking at the
    draws so that sum min(w p, q) is largest: where p is close to q the best of many is too far out.

    The paper lets all k paths compete and takes the winner's law over all ways the others may go;
    then q = p is accepted with probability 3/4 only (k = 2, many tokens). Here n is chosen, the
    ranking is done at each node among the draws that are there, so that any tree can be judged,
    and the paths that did not compete are verified after the winner, as `Block` does.
    """

    def pick(
        self, tree: Tree, tokens: list[int], node: int, count: int, wanted: Doubles
    ) -> tuple[int, Doubles, int]:
        draws = (tree.draws or {}).get(node)
        if draws is None or not draws.replacement or count == 1:
            return super().pick(tree, tokens, node, count, wanted)
        contest = Contest.between(wanted, draws.probs, count)
        place = len(draws.order) - count
        entrants = draws.order[place : place + contest.entrants]
        child = min(entrants, key=lambda one: int(contest.rank[tokens[one]]))
        return child, contest.q, contest.entrants


@dataclass(frozen=True)
class Contest:
    """The best of `entrants` independent draws: its law `q` [V], and each token's `rank` [V]."""

    entrants: int
    q: Doubles
    rank: npt.NDArray[np.int64]

    @classmethod
    def between(cls, wanted: Doubles, q: Doubles, most: int) -> Contest:
        """The contest of up to `most` draws from q whose winner's law covers `wanted` best."""
        with np.errstate(over="ignore"):
            ratio = np.divide(wanted, q, out=np.zeros_like(q), where=q > 0)
        order = np.argsort(-ratio)  # among equals any order will do, as long as it is one
        sorted_q, sorted_wanted = q[order], wanted[order]
        after = np.maximum(1.0 - np.cumsum(sorted_q), 0.0)  # 1 - F - q
        before = np.concatenate(([1.0], after[:-1]))  # 1 - F
        best, won = 1, sorted_q
        covered = float(np.minimum(sorted_wanted, won).sum())
        gain = np.ones(len(q))
        for entrants in range(2, most + 1):
            # a^n - b^n = (a - b) (a^(n-1) + a^(n-2) b + ... + b^(n-1)), without cancellation
            gain = gain * before + after ** (entrants - 1)
            law = sorted_q * gain
            if (now := float(np.minimum(sorted_wanted, law).sum())) > covered:
                best, won, covered = entrants, law, now
        winner, rank = np.empty_like(q), np.empty(len(q), np.int64)
        winner[order], rank[order] = won, np.arange(len(q))
        return cls(best, winner, rank)


def untried(tree: Tree, node: int, tried: Sequence[int]) -> int:
    """How many drafts after `node` no path has used yet."""
    draws = (tree.draws or {}).get(node)
    return len(tree.children[node] if draws is None else draws.order) - tried[node]


def keeping(stage: Stage) -> float:
    """h: the chance to keep the path up to here when all of what follows has been refused."""
    if stage.q is None:
        return stage.w
    excess = float(np.maximum(stage.w * stage.p - stage.q, 0.0).sum())
    return excess / (excess + 1.0 - stage.w) if stage.w < 1.0 else 1.0


def rest(stage: Stage) -> Doubles:
    """[V], a law: what follows the last kept token, beyond what the path stood for."""
    if stage.q is None:
        return stage.p
    left = np.maximum(stage.w * stage.p - stage.q, 0.0)
    mass = float(left.sum())
    return left / mass if mass > 0.0 else stage.p
