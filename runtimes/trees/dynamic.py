"""EAGLE-2's tree: grown along the likeliest paths, then the best nodes of all kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from graftline.tree import Doubles, Ints, Tree

Candidates = Callable[[Tree, Sequence[int]], tuple[Ints, Doubles]]
"""From the tree so far and some of its nodes: for each the candidates for its children, tokens
[m, k] and their probabilities given the node [m, k], in any order. A call is a drafting pass."""


class Growth:
    """EAGLE-2's tree (arXiv 2406.16858) while it grows.

    Expansion: the `width` nodes of the last depth of largest value, the product of probabilities
    along the path, are the `layer`, and get their `width` likeliest candidates. Reranking: of all
    nodes those of largest value stay, the shallower first where values are equal; no value is above
    its parent's, so ancestors stay with their descendants.

    Children are chosen, not drawn, so a rule for point masses is exact.
    """

    def __init__(self, root: int, width: int) -> None:
        self.tokens, self.parents = [root], [-1]
        self.given, self.value = [1.0], [1.0]
        """Of every node the probability given its parent, and its value."""
        self.layer, self._width = [0], width

    def expand(
        self, nodes: Sequence[int], ids: Sequence[Sequence[int]], probs: Sequence[Sequence[float]]
    ) -> None:
        """Give `nodes` their candidates: tokens [m, k] and probabilities given the node [m, k], in
        any order. Those of probability 0, or none (NaN), are left out. Plain numbers, because
        between two calls of a small model arrays of a few numbers take longer."""
        fresh: list[int] = []
        for node, row, shares in zip(nodes, ids, probs, strict=True):
            known = [place for place, share in enumerate(shares) if share > 0]
            known.sort(key=lambda place, shares=shares: -shares[place])
            for place in known[: self._width]:
                share = min(shares[place], 1.0)
                fresh.append(len(self.tokens))
                self.tokens.append(row[place])
                self.parents.append(node)
                self.given.append(share)
                self.value.append(self.value[node] * share)
        self.layer = self._ranked(fresh)[: self._width]

    def path(self, node: int) -> tuple[int, ...]:
        """The tokens from below the root to `node`."""
        found: list[int] = []
        while node:
            found.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(found))

    def whole(self) -> Tree:
        """All nodes, in the order in which they were found."""
        return _tree(self.tokens, self.parents, self.given)

    def best(self, rows: int, keep: Sequence[float] = ()) -> Tree:
        """The `rows` nodes of largest value, in that order, up to the first whose value is below
        what `keep` asks of its row. `probs` are the given probabilities."""
        kept = self._ranked(range(len(self.tokens)))[: max(rows, 1)]
        pairs = enumerate(zip(kept, keep, strict=False))
        few = next((row for row, (n, least) in pairs if row and self.value[n] < least), len(kept))
        kept = kept[:few]
        row_of = {node: row for row, node in enumerate(kept)}
        above = [-1, *(row_of[self.parents[node]] for node in kept[1:])]
        return _tree([self.tokens[n] for n in kept], above, [self.given[n] for n in kept])

    def _ranked(self, nodes: Iterable[int]) -> list[int]:
        """By falling value; numbered depth by depth, nodes keep that order among equals."""
        return sorted(nodes, key=lambda node: -self.value[node])


def grow(root: int, candidates: Candidates, rows: int, depth: int, width: int) -> Tree:
    """A tree of at most `rows` rows: `depth` passes of expansion, then reranking (`Growth`)."""
    growth = Growth(root, width)
    for _ in range(depth):
        if not growth.layer:
            break
        ids, probs = candidates(growth.whole(), growth.layer)
        growth.expand(growth.layer, ids.tolist(), probs.tolist())
    return growth.best(rows)


def _tree(tokens: list[int], parents: list[int], given: list[float]) -> Tree:
    return Tree(
        np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(given, np.float32)
    )
