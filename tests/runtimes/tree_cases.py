"""Accuracies, costs and names of small trees."""

from __future__ import annotations

from graftline.runtimes.control.costs import Costs
from graftline.tree import Tree

RANKS = [[0.5, 0.2, 0.1]]


CHEAP = Costs({1: 10.0, 16: 12.0}, {2: 10.2, 16: 12.0})
"""A tree of 16 rows costs a fifth more than none."""


FREE = Costs({1: 10.0, 16: 10.0}, {})


def spelled(tree: Tree) -> list[tuple[int, ...]]:
    """The tokens of every node's path, in the order of the rows."""
    return [tuple(int(tree.tokens[n]) for n in tree.path_to(i)) for i in range(len(tree))]
