"""Trees of parallel heads: the candidates of a depth are the same behind every node above."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from graftline.tree import Tree


def parallel_tree(
    root: int,
    ids: Sequence[Sequence[int]],
    chances: Sequence[Sequence[float]],
    rows: int,
    least: Sequence[float],
) -> Tree:
    """The tree of at most `rows` rows that is expected to accept most; `ids[d]` and `chances[d]`
    are the candidates at depth d + 1 and their chances, given that the node above is accepted.

    Rows come by falling chance, the product along their path, so that a cut keeps the best; the
    tree ends at the first row n whose chance is below `least[n]`. `probs` are the given chances.
    """
    orders = [sorted(range(len(row)), key=lambda rank, row=row: -row[rank]) for row in chances]
    tokens, parents, given = [root], [-1], [1.0]
    # every open node is the best of its siblings that are left: (-chance, age, parent, its chance,
    # depth, place among the siblings)
    heap: list[tuple[float, int, int, float, int, int]] = []
    age = 0

    def open_node(parent: int, above: float, depth: int, place: int) -> None:
        nonlocal age
        if depth < len(ids) and place < len(orders[depth]):
            chance = above * chances[depth][orders[depth][place]]
            if chance > 0.0:
                age += 1
                heapq.heappush(heap, (-chance, age, parent, above, depth, place))

    open_node(0, 1.0, 0, 0)
    while heap and (row := len(tokens)) < rows:
        negative, _, parent, above, depth, place = heapq.heappop(heap)
        if -negative < least[row]:
            break
        rank = orders[depth][place]
        tokens.append(ids[depth][rank])
        parents.append(parent)
        given.append(chances[depth][rank])
        open_node(parent, above, depth, place + 1)
        open_node(row, -negative, depth + 1, 0)
    return Tree(
        np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(given, np.float32)
    )


def planned_tree(
    root: int,
    ids: Sequence[Sequence[int]],
    chances: Sequence[Sequence[float]],
    parents: Sequence[int],
    ranks: Sequence[int],
) -> Tree:
    """The tree of a template: node n takes candidate `ranks[n]` of its depth."""
    depth, tokens, given = [0], [root], [1.0]
    for parent, rank in zip(parents[1:], ranks[1:], strict=True):
        depth.append(depth[parent] + 1)
        tokens.append(ids[depth[parent]][rank])
        given.append(chances[depth[parent]][rank])
    return Tree(
        np.asarray(tokens, np.int64), np.asarray(parents, np.int64), np.asarray(given, np.float32)
    )
