"""What a drafter proposes is put right before it is scored, so that it can cost speed only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graftline.runtimes.trees.packing import trim
from graftline.tree import Draws, Tree


def sound(
    tree: Tree, root: int, vocabulary: int, rows: int, whole: bool = False, placeholders: int = 0
) -> Tree:
    """`tree` with what no rule could judge left out; `tree` itself when there is nothing wrong.

    Cut to `rows`; dropped, with all below them: ids outside [0, vocabulary) but for so many
    `placeholders` from there on, text below one of these, later siblings of the
    same token (draws of it are counted to the first), and all children of a node whose draws are
    no draws: `probs` not a distribution over the vocabulary (within 1e-6), `order` not naming
    exactly the children, a child of probability zero, one drawn twice without replacement. A
    proposal rooted at another token than `root`, or not of int64, becomes the root alone.

    Several draws with replacement stand only in a `whole` proposal, one that is not cut later, and
    only where all of them would fit had no token come twice: what is cut may not hang on what was
    drawn. Nothing else here does either, so what remains is still drawn as its `draws` say. That
    they are true cannot be seen: a drafter that draws from one distribution and names another is
    wrong under every rule but `point-mass`.
    """
    if tree.tokens.dtype != np.int64 or tree.parents.dtype != np.int64 or tree.tokens[0] != root:
        return Tree.chain((root,))
    tokens = tree.token_list
    count = len(tokens)
    if count == 1 and not tree.draws:
        return tree
    parents = tree.parent_list
    ids = vocabulary, placeholders
    if count <= rows and not tree.draws and _plain(tokens, parents, *ids):
        return tree
    return _mended(tree, *ids, rows, whole)


def _mended(
    proposed: Tree, vocabulary: int, placeholders: int, rows: int, whole: bool
) -> Tree:
    tree = trim(_settled(proposed, rows, whole), rows)
    tokens = tree.token_list
    parents = tree.parent_list
    drawn = {node for node in proposed.draws or () if 0 <= node < len(tokens)}
    draws = tree.draws or {}
    barren = {n for n in drawn if n not in draws or not _drawn(tree, n, draws[n], vocabulary)}
    if not barren and set(draws) == drawn and _plain(tokens, parents, vocabulary, placeholders):
        return tree
    first: dict[tuple[int, int], int] = {}
    place = {0: 0}
    """Where a node of `tree` is in the result; siblings of one token share a place."""
    for node in range(1, len(tokens)):
        above, token = parents[node], tokens[node]
        if above not in place or above in barren or not 0 <= token < vocabulary + placeholders:
            continue
        if token < vocabulary <= tokens[above]:
            continue
        twin = first.setdefault((above, token), node)
        if twin == node:
            place[node] = len(place)
    kept = list(place)
    merged = {
        place[n]: _moved(draws[n], n, tokens, first, place)
        for n in kept
        if n in draws and n not in barren
    }
    moved = [-1, *(place[parents[node]] for node in kept[1:])]
    given = tree.probs
    probs = None if given is None or len(given) != len(tokens) else given[kept]
    return Tree(tree.tokens[kept], np.asarray(moved, np.int64), probs, merged or None)


def _settled(tree: Tree, rows: int, whole: bool) -> Tree:
    """Without several draws with replacement, unless all of them have a row for certain."""
    known = tree.draws or {}
    several = {n for n, d in known.items() if d.replacement and len(d.order) > 1}
    repeats = sum(len(d.order) - len(set(d.order)) for d in known.values())
    if not several or (whole and len(tree) + repeats <= rows):
        return tree
    return replace(tree, draws={n: d for n, d in known.items() if n not in several})


def _plain(tokens: list[int], parents: list[int], vocabulary: int, placeholders: int) -> bool:
    """Whether every id is known, no two siblings carry one token and no text follows a placeholder.
    """
    largest = max(tokens)
    known = min(tokens) >= 0 and largest < vocabulary + placeholders
    if not known or len(set(zip(parents, tokens, strict=True))) < len(tokens):
        return False
    pairs = zip(tokens[1:], parents[1:], strict=True)
    return largest < vocabulary or not any(t < vocabulary <= tokens[above] for t, above in pairs)


def _drawn(tree: Tree, node: int, draws: Draws, vocabulary: int) -> bool:
    """Whether the children of `node` can have been drawn as `draws` say: two passes over V."""
    probs, order = draws.probs, draws.order
    children = {child for child in tree.children[node] if tree.token_list[child] < vocabulary}
    if probs.shape != (vocabulary,) or set(order) != children:
        return False
    if not (probs.min() >= 0.0 and abs(float(probs.sum()) - 1.0) <= 1e-6):  # NaN fails both
        return False
    ids: list[int] = tree.tokens[list(order)].tolist()
    once = draws.replacement or len(set(ids)) == len(order)
    return once and all(0 <= t < vocabulary and probs[t] > 0.0 for t in ids)


def _moved(
    draws: Draws,
    node: int,
    tokens: list[int],
    first: dict[tuple[int, int], int],
    place: dict[int, int],
) -> Draws:
    order = tuple(place[first[node, tokens[child]]] for child in draws.order)
    return Draws(draws.probs, order, draws.replacement)
