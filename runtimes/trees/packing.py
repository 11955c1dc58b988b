"""Trees as a session wants them: cut to size, and padded to one shape per batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graftline.tree import Bools, Draws, Ints, Tree


def with_tokens(shape: Tree, tokens: Ints) -> Tree:
    """A tree of the same shape over other tokens; depth and mask are shared, not recomputed."""
    return _sharing(Tree(tokens, shape.parents), shape, len(shape))


def trim(tree: Tree, rows: int) -> Tree:
    """The first `rows` rows of the tree.

    Exact for children drawn without replacement, and for chains, when `rows` was chosen without
    looking at what was drawn. Draws with replacement are never cut: that a repeated draw fits tells
    what it is. Whoever makes them is told first how many rows there are.
    """
    if rows >= len(tree):
        return tree
    probs = None if tree.probs is None else tree.probs[:rows]
    draws = None
    if tree.draws:
        if any(d.replacement and len(d.order) > 1 for d in tree.draws.values()):
            raise ValueError("a tree with draws with replacement cannot be cut without bias")
        cut = {n: d.first(rows) for n, d in tree.draws.items() if n < rows}
        draws = {n: d for n, d in cut.items() if d is not None}
    return _sharing(Tree(tree.tokens[:rows], tree.parents[:rows], probs, draws), tree, rows)


def worth_scoring(tree: Tree, keep: Sequence[float]) -> Tree:
    """The rows of a tree up to the first, n, whose chance is below `keep[n]`."""
    pairs = enumerate(zip(tree.reach, keep, strict=False))
    return trim(tree, next((n for n, (chance, least) in pairs if n and chance < least), len(tree)))


def only(tree: Tree, rows: Sequence[int]) -> Tree:
    """These rows of the tree, in order, with every one its parent; of the children of a node that
    were drawn all or none."""
    place = {row: at for at, row in enumerate(rows)}
    parents = tree.parent_list
    moved = [-1, *(place[parents[row]] for row in rows[1:])]
    kept = list(rows)
    probs = None if tree.probs is None else tree.probs[kept]
    draws = {
        place[node]: Draws(d.probs, tuple(place[child] for child in d.order), d.replacement)
        for node, d in (tree.draws or {}).items()
        if node in place and all(child in place for child in d.order)
    }
    return Tree(tree.tokens[kept], np.asarray(moved, np.int64), probs, draws or None)


def first_path(tree: Tree) -> Tree:
    """The chain of first children from the root, for sessions that cannot score branches."""
    if len(tree) == 1 or tree.is_chain:
        return tree
    parents = tree.parent_list
    path = [0]
    for node in range(1, len(parents)):
        if parents[node] == path[-1]:
            path.append(node)
    chain = Tree.chain(tree.tokens[path])
    probs = None if tree.probs is None else tree.probs[path]
    if not tree.draws:
        return chain if probs is None else Tree(chain.tokens, chain.parents, probs)
    first = {
        place: Draws(tree.draws[node].probs, (place + 1,), tree.draws[node].replacement)
        for place, node in enumerate(path[:-1])
        if node in tree.draws
    }
    return Tree(chain.tokens, chain.parents, probs, first)


def text_first(tree: Tree, vocabulary: int) -> Tree:
    """The same tree with its placeholders, the ids from `vocabulary` on, behind all other rows: so
    that its text is its first rows. A placeholder has placeholders alone below it."""
    text = [row for row, token in enumerate(tree.token_list) if token < vocabulary]
    if text == list(range(len(text))):
        return tree
    return only(tree, [*text, *(row for row in range(len(tree)) if row not in set(text))])


def text_of(tree: Tree, vocabulary: int) -> Tree:
    """What a rule may judge of a tree whose text is its first rows."""
    return trim(tree, sum(token < vocabulary for token in tree.token_list))


def pack(trees: Sequence[Tree], least: int = 1) -> tuple[Ints, Ints | None, Bools | None]:
    """tokens [B, N], depth [B, N], mask [B, N, N] of one batch; chains need neither depth nor mask.

    N is the largest tree's size, at least `least`. Padding rows repeat the root, at its depth, and
    see only themselves; after chains no real row sees them, so the causal mask serves.
    """
    width = max(least, max(len(t) for t in trees))
    batch = len(trees)
    if all(len(t) == 1 or t.is_chain for t in trees):
        if batch == 1 and len(trees[0]) == width:
            return trees[0].tokens[None], None, None
        return _tokens(trees, width), None, None
    depth = np.zeros((batch, width), np.int64)
    mask: npt.NDArray[np.bool_] = np.zeros((batch, width, width), np.bool_)
    mask[:, np.arange(width), np.arange(width)] = True
    for row, tree in enumerate(trees):
        count = len(tree)
        depth[row, :count] = tree.depth
        mask[row, :count, :count] = tree.mask
    return _tokens(trees, width), depth, mask


def _tokens(trees: Sequence[Tree], width: int) -> Ints:
    tokens = np.empty((len(trees), width), np.int64)
    for row, tree in enumerate(trees):
        tokens[row, : len(tree)] = tree.tokens
        tokens[row, len(tree) :] = tree.tokens[0]
    return tokens


def _sharing(tree: Tree, source: Tree, rows: int) -> Tree:
    """Hand over what `source` has computed; a cached property lives in the instance's dict."""
    known = source.__dict__
    if "depth" in known:
        tree.__dict__["depth"] = known["depth"][:rows]
    if "mask" in known:
        tree.__dict__["mask"] = known["mask"][:rows, :rows]
    return tree
