"""Placeholders behind the nodes of a drafted tree, where the text most likely ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftline.tree import Tree


def planted(text: Tree, worth: Sequence[float], first: int, rows: int, least: float = 0.0) -> Tree:
    """The tree `text` with chains of placeholders, the ids from `first` on, at most `rows` rows in
    all, those that are expected to bring most first (the dynamic sparse tree of arXiv 2405.18628).

    A row of text brings its chance. Placeholder i behind a node brings `worth[i]` in the next step,
    where the text ends there: with the node's chance less that of its children. Of the chain behind
    the root each is worth `least` at least. `probs` say so: see `Tree`.
    """
    reach, parents = text.reach, text.parent_list
    ends = list(reach)
    for node, parent in enumerate(parents[1:], 1):
        ends[parent] -= reach[node]
    # (gain, kind, node, depth): what may stand below something brings no more than that, and of
    # equals text comes first, by its node, then chains by their depth
    items = [(gain, 0, node, 0) for node, gain in enumerate(reach)]
    for node, end in enumerate(ends):
        gains = ((depth, max(end, 0.0) * value) for depth, value in enumerate(worth))
        known = [(max(gain, least if node == 0 else 0.0), 1, node, d) for d, gain in gains]
        items += [item for item in known if item[0] > 0.0]
    items.sort(key=lambda item: (-item[0], *item[1:]))
    root = items.index((reach[0], 0, 0, 0))
    items.insert(0, items.pop(root))  # tries may be worth more than a token
    place: dict[tuple[int, int], int] = {}
    """Where a node (its depth 0) and the placeholders behind it (from 1 on) are."""
    tokens, above, probs = list[int](), list[int](), list[float]()
    gained: list[float] = []
    for gain, kind, node, depth in items[:rows]:
        parent = place[node, depth] if kind else place.get((parents[node], 0), -1)
        place[node, depth + kind] = len(tokens)
        tokens.append(first + depth if kind else text.token_list[node])
        above.append(parent)
        probs.append(gain / gained[parent] if parent >= 0 else gain)
        gained.append(gain)
    return Tree(
        np.asarray(tokens, np.int64), np.asarray(above, np.int64), np.asarray(probs, np.float32)
    )


def chain_behind(tree: Tree, node: int, first: int) -> list[int]:
    """The nodes of the chain of placeholders, the ids from `first` on, that stands behind a node.
    """
    tokens, parents, chain = tree.token_list, tree.parent_list, [node]
    for place in range(node + 1, len(tokens)):
        if parents[place] == chain[-1] and tokens[place] == first + len(chain) - 1:
            chain.append(place)
    return chain[1:]
