"""Acceptance at drafted nodes, next to what theory allows: recorded while a recipe decodes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graftline.runtimes.acceptance.stochastic import Doubles, Laws
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.study import oracle
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass(frozen=True)
class Record:
    """One drafted node that a rule came to: whether a child of it stood, and the chances.

    `rule`: by the rule's own theory, None where it is not known. `bound`: of the best lossless rule
    on drafts that come about like these (an optimal transport, arXiv 2502.18779). `best`: of the
    same number of drafts, had they been the target's likeliest tokens.
    """

    drafts: int
    accepted: bool
    rule: float | None
    bound: float
    best: float


@dataclass
class Records:
    """At most `most` nodes of a recipe whose rule is `rule`, sampled with `sampling`."""

    rule: str
    sampling: Sampling
    most: int = 64
    nodes: list[Record] = field(default_factory=list[Record])

    def watch(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        """Record the drafted nodes of the accepted path."""
        laws = Laws(self.sampling, scores, row)
        for depth, node in enumerate(verdict.path):
            if len(self.nodes) >= self.most:
                return
            if tree.children[node]:
                accepted = depth + 1 < len(verdict.path)
                self.nodes.append(self._record(tree, node, laws.at(node), accepted))

    def _record(self, tree: Tree, node: int, p: Doubles, accepted: bool) -> Record:
        draws = (tree.draws or {}).get(node)
        if draws is None:  # point masses: every lossless rule accepts them with their own chance
            drafts = len(tree.children[node])
            mass = float(p[tree.tokens[list(tree.children[node])]].sum())
            return Record(drafts, accepted, mass, mass, _largest(p, drafts))
        drafts, q = len(draws.order), draws.probs
        alike = draws.replacement or drafts == 1
        rule = self.rule if alike else f"{self.rule} without replacement"
        own = oracle.acceptance(rule, p, q, drafts) if rule in oracle.ACCEPTANCE else None
        bound = oracle.bound(p, q, drafts, alike)
        return Record(drafts, accepted, own, bound, _largest(p, drafts))

    def summary(self) -> dict[str, float | None]:
        """Means over the nodes: drafts, accepted, rule (None where unknown), bound, best."""
        if not self.nodes:
            return {}
        own = [n.rule for n in self.nodes if n.rule is not None]
        return {
            "nodes": len(self.nodes),
            "drafts": _mean([n.drafts for n in self.nodes]),
            "accepted": _mean([n.accepted for n in self.nodes]),
            "rule": _mean(own) if len(own) == len(self.nodes) else None,
            "bound": _mean([n.bound for n in self.nodes]),
            "best": _mean([n.best for n in self.nodes]),
        }


def _mean(values: list[float] | list[int] | list[bool]) -> float:
    return float(np.mean(values))


def _largest(p: Doubles, count: int) -> float:
    """The mass of the `count` likeliest tokens."""
    return float(np.partition(p, -count)[-count:].sum()) if count < len(p) else 1.0
