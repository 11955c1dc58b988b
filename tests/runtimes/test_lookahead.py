"""Lookahead: its pool, and the window that finds a text never seen before."""

from __future__ import annotations

import numpy as np
from store_cases import emit, paths

from graftline.runtimes.drafters.lookahead import JacobiWindow, Lookahead, NgramPool, Shoot
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

# --- lookahead --------------------------------------------------------------------------------


def test_the_pool_keeps_the_newest_and_remembers_who_was_first() -> None:
    pool = NgramPool(2)
    pool.add((1, 2, 3), from_window=True)
    pool.add((1, 4, 5), from_window=False)
    pool.add((1, 2, 3), from_window=False)
    assert pool.after(1) == [((2, 3), True), ((4, 5), False)]
    pool.add((1, 6, 7), from_window=False)
    assert pool.after(1) == [((6, 7), False), ((2, 3), True)]
    assert pool.after(9) == []


def test_the_window_is_the_paper_s_mask_and_completes_n_grams() -> None:
    """W = 3, N = 4; the target always answers its row's number plus 100."""
    window = JacobiWindow(3, 4, [50])
    seen: list[tuple[int, ...]] = []
    for step in range(4):
        shoot = Shoot(7)
        rows = window.grow(shoot)
        if step == 2:
            above = shoot.parents
            # level 0 is the root and two to its right; levels 1 and 2 hang below their column
            assert above[:3] == [-1, 0, 1]
            assert above[3:6] == [0, 1, 2]
            assert above[6:9] == [3, 4, 5]
            assert rows == [6, 7, 8]
        columns = [level[1:] for level in window.levels]
        seen = window.advance(7, [100 + row for row in rows])
        if step < 2:
            assert seen == []
            assert len(window.levels) == step + 2
        else:
            assert [ngram[-1] for ngram in seen] == [100 + row for row in rows]
            assert [list(ngram[:3]) for ngram in seen[1:]] == [
                list(c) for c in zip(*columns, strict=True)
            ]
            assert seen[0][0] == 7
            assert len(window.levels) == 3


def told_by_successor(drafter: Lookahead, steps: int, rows: int = 99) -> int:
    """Tokens per `steps` steps of a target that says t + 1 after t, modulo 17; greedy."""
    root, emitted = 3, 0
    for _ in range(steps):
        tree = trim(drafter.propose(drafter.rows), rows)
        choice = ((tree.tokens + 1) % 17).tolist()
        node, path = 0, [0]
        while True:
            fits = [k for k in tree.children[node] if tree.tokens[k] == choice[node]]
            if not fits:
                break
            node = fits[0]
            path.append(node)
        scores = Scores(np.asarray([choice]), np.zeros((1, len(tree), 17), np.float32))
        drafter.observe(tree, Verdict(tuple(path), choice[node]), scores, 0)
        assert choice[node] == (root + len(path)) % 17
        root, emitted = choice[node], emitted + len(path)
    return emitted


def test_the_window_alone_finds_a_text_never_seen_before() -> None:
    """The prompt counts down, the target up: every accepted n-gram comes from the window."""
    drafter = Lookahead(text=False)
    drafter.start([*range(16, 2, -1)])
    assert told_by_successor(drafter, 20) > 40
    drafter.start([*range(16, 2, -1)])
    assert told_by_successor(drafter, 20, rows=10) == 20  # a window that was cut gives nothing


def test_a_window_that_is_cut_or_bears_nothing_pauses_ever_longer() -> None:
    drafter = Lookahead(text=False)
    drafter.start([3])
    offered = []
    for _ in range(60):
        offered.append(len(drafter.propose(32)) > 1)
        emit(drafter, 3, 3)  # the root alone was scored
    assert [i for i, was in enumerate(offered) if was] == [0, 9, 26, 59]
    drafter.start([3])
    assert len(drafter.propose(32)) > 1  # a new text starts anew
    offered = []
    for token in range(40):
        tree = drafter.propose(32)
        offered.append(len(tree) > 1)
        random = np.random.default_rng(token).integers(0, 1 << 40, (1, len(tree)))
        drafter.observe(tree, Verdict((0,), token), Scores(random, np.zeros((1, 1, 1))), 0)
    assert offered.count(False) == 8
    assert offered.index(False) == 24


def test_a_tree_that_is_not_its_own_teaches_the_window_nothing() -> None:
    """As in a merge: the rows are others, so their answers are not the window's."""
    drafter = Lookahead(text=False)
    drafter.start([3, 5])
    drafter._pool.add((5, 6, 7, 8), from_window=True)
    tree = drafter.propose(32)
    levels = [list(level) for level in drafter._window.levels]
    drafter._pause = 64
    other = Tree(tree.tokens[[0, *range(len(tree) - 1, 0, -1)]], np.arange(-1, len(tree) - 1))
    answers = Scores(np.full((1, len(tree)), 4), np.zeros((1, 1, 1), np.float32))
    drafter.observe(other, Verdict(tuple(range(len(tree))), 5), answers, 0)
    assert drafter._window.levels == levels
    assert len(drafter._pool.after(3)) == 0
    assert len(drafter.propose(32)) == 4  # the window pauses; the pool's n-gram is offered
    assert drafter._wait == 64  # and the n-gram was not taken for accepted


def test_a_shared_pool_outlives_the_request() -> None:
    ngrams = [1, 2, 3, 4, 5, 1]
    for shared in (False, True):
        drafter = Lookahead(shared=shared)
        first, second = drafter.fork(), drafter.fork()
        first.start(ngrams)
        second.start([9, 1])
        assert ((2, 3, 4) in paths(second.propose(32))) == shared
        assert (2, 3, 4) in paths(first.propose(32))
