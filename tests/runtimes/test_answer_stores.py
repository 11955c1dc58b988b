"""Drafters that keep the target's answers: how they are averaged, forgotten, and searched."""

from __future__ import annotations

import numpy as np
import pytest
from store_cases import answer, emit, paths

from graftline.errors import GraftlineError
from graftline.runtimes.drafters.aded import Aded
from graftline.runtimes.drafters.stand import Stand
from graftline.runtimes.ngram_store import NgramStore
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

# --- stores of the target's answers -----------------------------------------------------------


def test_answers_are_averaged_then_forgotten_exponentially() -> None:
    store = NgramStore(width=2, horizon=2)
    store.learn((1,), [5, 6], [0.8, 0.2])
    store.learn((1,), [6, 7], [0.9, 0.1])
    known = store.find((1,))
    assert known is not None
    assert (known.tokens, known.seen) == ([6, 5], 2)
    assert known.probs == pytest.approx([0.55, 0.4])
    store.learn((1,), [5, 6], [1.0, 0.0])
    assert known.tokens == [5, 6]
    assert known.probs == pytest.approx([0.7, 0.275])  # half of the old, half of the new
    assert store.find((2,)) is None


def test_a_full_store_forgets_its_oldest_half() -> None:
    store = NgramStore(width=1, horizon=1, most=4)
    for token in range(5):
        store.learn((token,), [0], [1.0])
    assert [store.find((t,)) is not None for t in range(5)] == [False, False, True, True, True]


def test_aded_learns_every_row_and_searches_by_joint_probability() -> None:
    drafter = Aded(rows=6, explore=0.0)
    drafter.start([8, 7])
    tree = Tree(np.array([7, 1, 2, 4]), np.array([-1, 0, 0, 1]))
    told = answer((1, 2, 3), (4, 5, 6), (9, 5, 6), (10, 5, 6))
    drafter.observe(tree, Verdict((0,), 8), told, 0)  # all drafts rejected, and learned
    emit(drafter, 8, 7, best=(7, 11, 12))
    # after 8 7: 1 (.6), 2 (.3), 3 (.1); after 7 1: 4 (.36); after 1 4: 10 (.216); after 7 2: 9
    assert paths(drafter.propose(6)) == [(), (1,), (1, 4), (2,), (1, 4, 10), (1, 5)]
    assert drafter.signal == 1 + 2  # a peak of 0.6, seen once
    drafter.observe(drafter.propose(3), Verdict((0, 1, 2), 5), answer(*[(3, 4, 5)] * 3), 0)
    emit(drafter, 5, 4, best=(6, 3, 2))  # what follows 4 5, the last accepted and the next
    drafter.start([4, 5])
    assert paths(drafter.propose(2)) == [(), (6,)]
    wide = Aded(rows=6, explore=3.0)
    wide._matrix = drafter._matrix
    wide.start([7, 2])
    assert paths(wide.propose(4)) == [(), (9,), (5,), (6,)]


def test_aded_starts_from_the_tri_grams_of_the_prompt() -> None:
    for text in (True, False):
        drafter = Aded(text=text)
        drafter.start([1, 2, 3, 4, 1, 2, 5, 1, 2])
        # after 1 2 both 3 and 5 were seen, the later one no more often
        assert set(paths(drafter.propose(3))[1:]) == ({(3,), (5,)} if text else set())
        drafter.start([3])
        assert len(drafter.propose(3)) == 1


def test_stand_means_the_answers_of_accepted_rows_and_prefers_long_n_grams() -> None:
    drafter = Stand(rows=8, longest=3)
    drafter.start([8, 7])
    tree = Tree(np.array([7, 2, 1]), np.array([-1, 0, 0]))
    drafter.observe(tree, Verdict((0, 2), 7), answer((1, 2, 3), (9, 8, 6), (7, 5, 6)), 0)
    accepted = drafter._store.find((7, 1))
    assert accepted is not None
    assert accepted.tokens == [7, 5, 6]
    assert drafter._store.find((2,)) is None  # the rejected row
    emit(drafter, 7, 3, 7, best=(4, 5, 6))
    # one token back, after 7, the mean of two answers; two back, after 1 7, one answer
    after = drafter._store.find((7,))
    assert after is not None
    assert after.probs == pytest.approx([0.3, 0.3, 0.15, 0.15, 0.05, 0.05])
    drafter.start([1, 7])
    assert [path for path in paths(drafter.propose(8)) if len(path) == 1] == [(4,), (5,), (6,)]
    drafter.start([0, 7])
    assert {path for path in paths(drafter.propose(99)) if len(path) == 1} == {(1,), (4,), (2,)}


def test_stand_takes_the_tuned_tree() -> None:
    drafter = Stand()
    drafter.equip(Resources(tuned={"tree": [-1, 0, 0, 1, 3]}))
    drafter = drafter.fork()
    drafter.start([9])
    emit(drafter, 9, 9, best=(9, 4, 5))
    tree = drafter.propose(32)
    assert paths(tree) == [(), (9,), (4,), (9, 9), (9, 9, 9)]
    for wrong in ([0, 1], "tree", [-1, 5]):
        with pytest.raises(GraftlineError, match="graftline tune"):
            Stand().equip(Resources(tuned={"tree": wrong}))


def test_drawn_children_follow_the_stored_distribution_without_replacement() -> None:
    drafter = Stand(rows=6, sampled=True, seed=1)
    drafter.start([9])
    emit(drafter, 9, 9, best=(9, 4, 5))
    firsts: list[int] = []
    pairs: list[tuple[int, int]] = []
    for _ in range(4000):
        tree = drafter.propose(6)
        assert len(tree) == 6  # whatever was drawn, also where nothing is known
        assert tree.draws is not None
        root = tree.draws[0]
        assert root.probs[[9, 4, 5]] == pytest.approx([0.6, 0.3, 0.1])
        assert root.probs.sum() == pytest.approx(1.0)
        assert root.order == tuple(sorted(tree.children[0]))
        drawn = [int(tree.tokens[node]) for node in root.order]
        assert len(set(drawn)) == len(drawn)
        firsts.append(drawn[0])
        pairs.append((drawn[0], drawn[1]))
        for node, draws in tree.draws.items():
            assert draws.order == tree.children[node]
    share = np.bincount(firsts, minlength=10)[[9, 4, 5]] / 4000
    assert share == pytest.approx([0.6, 0.3, 0.1], abs=0.025)
    assert pairs.count((9, 4)) / 4000 == pytest.approx(0.6 * 0.3 / 0.4, abs=0.025)


def test_stores_outlive_requests_and_are_shared() -> None:
    for kind in (Aded, Stand):
        drafter = kind()
        one, other = drafter.fork(), drafter.fork()
        one.start([1, 2])
        emit(one, 2, 4, best=(3, 4, 5))
        other.start([1, 2])
        assert (3,) in paths(other.propose(8))


def test_a_graph_without_top_k_is_named() -> None:
    bare = Scores(np.zeros((1, 1), np.int64), np.zeros((1, 1, 9), np.float32))
    for drafter in (Aded(), Stand()):
        drafter.start([1, 2])
        with pytest.raises(GraftlineError, match=r"reduce-logits\{topk=8\}"):
            drafter.observe(Tree.chain([2]), Verdict((0,), 3), bare, 0)
