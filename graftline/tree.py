"""A tree of drafted tokens. Mask, depths, paths and children follow from tokens and parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """How the children of a node came about: drawn at random from `probs` [V], a distribution.

    `order` lists child nodes in the order of the draws: independent draws when `replacement` (one
    drawn twice is one node, listed twice), else each from what the earlier ones left, renormalised.
    """

    probs: Doubles
    order: tuple[int, ...]
    replacement: bool = False

    def first(self, rows: int) -> Draws | None:
        """The draws before the first that needs a row past `rows`; None when there are none."""
        count = next((i for i, node in enumerate(self.order) if node >= rows), len(self.order))
        return Draws(self.probs, self.order[:count], self.replacement) if count else None


@dataclass(frozen=True)
class Tree:
    """Root first, every parent before its children.

    `tokens` [n] int64, `parents` [n] int64 with parents[0] == -1: node 0 is the last committed
    token, whose successor the target has yet to choose. `probs` [n] float32 or None: the drafter's
    probability of each node given its parent (None: unknown); of a placeholder, which is never
    accepted, the tokens that it is expected to bring the next step. `draws`: for every node whose
    children were drawn at random, how; the children of a node not in it are point masses, chosen
    without chance. A sampled draft without its `draws` makes every lossless rule wrong.
    """

    tokens: Ints
    parents: Ints
    probs: Floats | None = field(default=None)
    draws: Mapping[int, Draws] | None = field(default=None)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or len(self.tokens) == 0:
            raise ValueError("a tree needs as many parents as tokens, and a root")
        above = self.parent_list
        if above[0] != -1 or any(parent >= node for node, parent in enumerate(above)):
            raise ValueError("a tree lists its root first and every parent before its children")
        if min(above[1:], default=0) < 0:
            raise ValueError("a tree has one root")

    @classmethod
    def chain(cls, tokens: Sequence[int] | Ints) -> Tree:
        """The tree with one path: the root and its drafted continuation."""
        ids = np.asarray(tokens, dtype=np.int64)
        if len(ids) == 0:
            raise ValueError("a tree needs a root")
        tree = object.__new__(cls)  # a chain's parents need no checking, and there is one a step
        tree.__dict__.update(
            tokens=ids, parents=_chain_parents(len(ids)), probs=None, draws=None, is_chain=True
        )
        return tree

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depth(self) -> Ints:
        """[n]: distance from the root."""
        depth = np.zeros(len(self), dtype=np.int64)
        for node in range(1, len(self)):
            depth[node] = depth[self.parents[node]] + 1
        return depth

    @cached_property
    def mask(self) -> Bools:
        """[n, n]: mask[i, j] is true when j is i or an ancestor of i."""
        mask = np.eye(len(self), dtype=np.bool_)
        for node in range(1, len(self)):
            mask[node] |= mask[self.parents[node]]
        return mask

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """For every node its children, in order."""
        kids: list[list[int]] = [[] for _ in range(len(self))]
        for node in range(1, len(self)):
            kids[int(self.parents[node])].append(node)
        return tuple(tuple(k) for k in kids)

    @cached_property
    def reach(self) -> list[float]:
        """What each row is expected to bring, by `probs`: the product along its path."""
        assert self.probs is not None, "a drafter that knows says so"
        reach: list[float] = self.probs.tolist()
        for node, parent in enumerate(self.parent_list[1:], 1):
            reach[node] *= reach[parent]
        return reach

    @cached_property
    def is_chain(self) -> bool:
        """True when there is one path only, so a causal mask serves."""
        return self.parent_list == _chain_list(len(self))

    @cached_property
    def token_list(self) -> list[int]:
        """`tokens` as plain numbers, not to be changed: between two steps they are faster."""
        return self.tokens.tolist()

    @cached_property
    def parent_list(self) -> list[int]:
        """`parents` likewise."""
        return self.parents.tolist()

    def path_to(self, node: int) -> tuple[int, ...]:
        """Nodes from the root to `node`, both included."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(int(self.parents[path[-1]]))
        return tuple(reversed(path))


@cache
def _chain_list(count: int) -> list[int]:
    return list(range(-1, count - 1))


@cache
def _chain_parents(count: int) -> Ints:
    parents = np.arange(-1, count - 1, dtype=np.int64)
    parents.setflags(write=False)
    return parents
