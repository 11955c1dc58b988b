"""EAGLE-2's tree: grown along the likeliest paths, then the best nodes of all kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graftline.tree import Doubles, Ints, Tree

Candidates = Callable[[Tree, Sequence[int]], tuple[Ints, Doubles]]
"""From the tree so far and some of its nodes: for each the candidates for its children, tokens
[m, k] and their probabilities given the node [m, k], in any order. A call is a drafting pass."""


def grow(root: int, candidates: Candidates, rows: int, depth: int, width: int) -> Tree:
    """A tree of at most `rows` rows (EAGLE-2, arXiv 2406.16858).

    Expansion: in each of `depth` passes the `width` nodes of the last layer with the largest value,
    the product of probabilities along the path, get their `width` likeliest candidates. Reranking:
    of all nodes those of largest value stay, the shallower first where values are equal; no value
    is above its parent's, so ancestors stay with their descendants. Rows are in that order.

    Children are chosen, not drawn, so a rule for point masses is exact; `probs` are the given
    probabilities. Candidates of probability 0, or none, are left out.
    """
    tokens, parents, given, value = [root], [-1], [1.0], [1.0]
    layer = [0]
    for _ in range(depth):
        ids, probs = candidates(_tree(tokens, parents, given), layer)
        fresh: list[int] = []
        for node, row, shares in zip(layer, ids, np.nan_to_num(probs), strict=True):
            for place in np.argsort(-shares, kind="stable")[:width].tolist():
                share = min(float(shares[place]), 1.0)
                if share > 0:
                    fresh.append(len(tokens))
                    tokens.append(int(row[place]))
                    parents.append(node)
                    given.append(share)
                    value.append(value[node] * share)
        layer = sorted(fresh, key=lambda node: -value[node])[:width]
        if not layer:
            break
    # nodes are numbered layer by layer and a stable sort keeps that order among equals
    kept = sorted(range(len(tokens)), key=lambda node: -value[node])[: max(rows, 1)]
    row_of = {node: row for row, node in enumerate(kept)}
    above = [-1, *(row_of[parents[node]] for node in kept[1:])]
    return _tree([tokens[n] for n in kept], above, [given[n] for n in kept])


def _tree(tokens: list[int], parents: list[int], given: list[float]) -> Tree:
    return Tree(
        np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(given, np.float32)
    )
