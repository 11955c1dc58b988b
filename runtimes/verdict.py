"""What a rule answers about a scored tree, and the protocol of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from graftline.runtimes.session import Scores
from graftline.tree import Tree


@dataclass(frozen=True, slots=True)
class Verdict:
    """`path`: the accepted nodes, root first; `next`: the token chosen after the last of them."""

    path: tuple[int, ...]
    next: int

    def tokens(self, tree: Tree) -> list[int]:
        """The tokens this step adds: the accepted drafts, then `next`."""
        if len(self.path) == 1:
            return [self.next]
        ids = tree.tokens
        return [int(ids[node]) for node in self.path[1:]] + [self.next]


class Rule(Protocol):
    """Decides which drafted tokens stand. One rule serves one sequence and owns its generator."""

    lossless: ClassVar[bool]
    """True when the output has exactly the target's distribution (its argmax when greedy)."""

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        """The verdict on `tree`, scored as sequence `row`; rows past the tree's are padding. What
        the request wants is read by `scores.after` and `best`, of nodes that may stand alone."""
        ...


def walk(tree: Tree, choose: Callable[[int], int]) -> Verdict:
    """From the root, follow the child that carries the token chosen at each node, until none does.

    `choose(node)` is called once per node of the path, in order.
    """
    token = choose(0)
    count = len(tree)
    if count == 1:
        return Verdict((0,), token)
    tokens = tree.token_list
    parents = tree.parent_list
    path = [0]
    for node in range(1, count):
        if tokens[node] == token and parents[node] == path[-1]:
            path.append(node)
            token = choose(node)
    return Verdict(tuple(path), token)
