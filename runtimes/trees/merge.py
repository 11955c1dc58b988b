"""Several sources' trees as one: the union of their paths, cut to the most promising rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftline.tree import Tree


def merge(
    trees: Sequence[Tree],
    chances: Sequence[Sequence[float]],
    rows: int,
    least: float = 0.0,
) -> Tree:
    """The union of `trees` by shared prefixes, as RASD (arXiv 2503.03434) joins a retrieved tree to
    the drafter's own, cut to `rows` rows.

    `chances[i][n]` is the chance, given the context, that node n of tree i is accepted. A path that
    several trees have counts with the largest of theirs; one that is said to be likelier than its
    parent counts as its parent does. Rows are listed by falling chance, so a smaller `rows` gives
    the first rows of a larger one; nodes whose chance is below `least` (or no number) are dropped
    with all below them. `probs` of the result is each node's chance given its parent.

    Raises ValueError for trees that do not start at one token, and for drawn children: ranking a
    drawn token by its chance would change the distribution of what is left.
    """
    root = int(trees[0].tokens[0])
    place_of: dict[tuple[int, int], int] = {}
    tokens, parents, best = [root], [-1], [1.0]
    for tree, chance in zip(trees, chances, strict=True):
        ids = tree.token_list
        above = tree.parent_list
        if ids[0] != root or tree.draws:
            raise ValueError("merged trees start at one token and have no drawn children")
        places = [0]
        for node in range(1, len(ids)):
            parent = places[above[node]]
            place = place_of.setdefault((parent, ids[node]), len(tokens))
            if place == len(tokens):
                tokens.append(ids[node])
                parents.append(parent)
                best.append(0.0)
            best[place] = max(best[place], min(float(chance[node]), best[parent]))
            places.append(place)
    # a parent was listed before its children and is no less likely, so a stable sort keeps it first
    likeliest = sorted(range(1, len(tokens)), key=lambda place: -best[place])
    kept = [0, *(place for place in likeliest if best[place] > 0 and best[place] >= least)]
    return _chosen(tokens, parents, best, kept[: max(rows, 1)])


def _chosen(tokens: list[int], parents: list[int], chance: list[float], kept: list[int]) -> Tree:
    row_of = {place: row for row, place in enumerate(kept)}
    above = [-1, *(row_of[parents[place]] for place in kept[1:])]
    given = [1.0, *(chance[place] / chance[parents[place]] for place in kept[1:])]
    return Tree(
        np.asarray([tokens[place] for place in kept], np.int64),
        np.asarray(above, np.int64),
        np.asarray(given, np.float32),
    )
