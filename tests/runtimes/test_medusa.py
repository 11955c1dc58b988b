"""Medusa's drafter: trees of what heads say, what it learns of them, and batches of calls."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.runtimes.chances.head_chances import HeadChances
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.medusa import Medusa
from graftline.runtimes.head_reader import Reading
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL, Scores
from graftline.runtimes.trees.parallel import parallel_tree
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

HIDDEN, VOCABULARY = 4, 50


class Known:
    """Heads that say what the state holds: state [t, ...] gives t + 1 + i by head i, first."""

    sequential = reads_last = False

    def __init__(self, heads: int = 3, width: int = 4) -> None:
        self.heads, self.width, self.hidden, self.milliseconds = heads, width, HIDDEN, 1.5
        self.calls: list[int] = []

    def answer(self, hidden: Any, head: int = 0, tokens: Any = None) -> Any:
        self.calls.append(len(hidden))
        places = np.arange(self.heads)[:, None] + np.arange(self.width)
        ids = (hidden[:, :1, None].astype(np.int64) + 1 + places) % VOCABULARY
        logits = np.broadcast_to(-np.arange(self.width, dtype=np.float32), ids.shape)
        return ids, logits


def scores_of(tokens: list[int], hidden: bool = True) -> Scores:
    """Rows after which the state says which token follows."""
    count = len(tokens)
    logits = np.zeros((1, count, VOCABULARY), np.float32)
    state = np.zeros((1, count, HIDDEN), np.float32)
    state[0, :, 0] = tokens
    best = np.asarray([tokens])
    return Scores(best, logits, taps={FINAL: state} if hidden else {})


def made(heads: Any, **options: object) -> Any:
    return make_drafter("medusa", options, Resources(head=lambda: heads))


def begun(drafter: Any, token: int) -> Any:
    """A prompt was read whose last row chose `token`."""
    drafter.start([1, 2, 3])
    drafter.observe(Tree.chain((3,)), Verdict((0,), token), scores_of([token]), 0)
    return drafter


def test_a_draft_is_what_the_heads_say_behind_the_root() -> None:
    drafter = begun(made(Known()), 10)
    assert drafter.propose(8).tokens.tolist() == [10], "what costs nothing is the root"
    tree = drafter.drafted(Bid.free(12))
    assert tree.tokens[0] == 10
    assert len(tree) == 12
    first = [tree.tokens[c] for c in tree.children[0]]
    assert first == [11, 12, 13, 14][: len(first)], "head 0 speaks of the token behind the root"
    for node in range(1, len(tree)):
        depth = int(tree.depth[node])
        assert tree.tokens[node] in range(10 + depth, 14 + depth)
    assert int(tree.depth.max()) == 3
    assert drafter.reads == 1
    assert drafter.price(1) == 1.5
    assert drafter.price(0) == 0.0


def test_rows_come_by_falling_chance_and_end_where_one_is_not_worth_it() -> None:
    ids = [[1, 2, 3], [4, 5, 6]]
    chances = [[0.6, 0.3, 0.05], [0.5, 0.2, 0.1]]
    tree = parallel_tree(0, ids, chances, 10, [0.0] * 10)
    reach = [1.0]
    assert tree.probs is not None
    for node in range(1, len(tree)):
        reach.append(reach[tree.parents[node]] * float(tree.probs[node]))
    assert reach == sorted(reach, reverse=True)
    every = [1.0, *(a for a in chances[0]), *(a * b for a in chances[0] for b in chances[1])]
    np.testing.assert_allclose(reach, sorted(every, reverse=True)[:10], rtol=1e-6)
    small = parallel_tree(0, ids, chances, 4, [0.0] * 4)
    assert small.tokens.tolist() == tree.tokens[:4].tolist()
    cut = parallel_tree(0, ids, chances, 10, [0.0, 0.0, 0.0, 0.29, 0.5, 0.0])
    assert [round(c, 3) for c in reach[: len(cut)]] == [1.0, 0.6, 0.3, 0.3]
    turned = parallel_tree(0, ids, [[0.1, 0.6, 0.0], [0.0, 0.0, 0.0]], 10, [0.0] * 10)
    assert turned.tokens.tolist() == [0, 2, 1], "by chance, not by rank; none for no chance"


def test_chances_are_learned_by_head_and_rank() -> None:
    """Head 0 is right at its first candidate always, head 1 at its second in half of the steps."""
    random, chances = np.random.default_rng(0), HeadChances(2, 3)
    shares = [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]
    for _ in range(600):
        chances.record(0, [1, 2, 3], shares[0], 1)
        chances.record(1, [4, 5, 6], shares[1], 5 if random.random() < 0.5 else 9)
    assert chances.usual(0) > 0.99
    assert chances.usual(1) < 0.01
    found = chances.of(shares)
    assert found[0][0] > 0.97
    assert max(found[0][1:]) < 0.02
    assert found[1][1] == pytest.approx(0.5, abs=0.08)
    assert max(found[1][0], found[1][2]) < 0.02
    assert HeadChances(1, 2).of([[0.7, 0.3]])[0] == pytest.approx([0.7, 0.3])


def test_what_lies_behind_the_first_miss_says_nothing() -> None:
    drafter = begun(made(Known(width=1)), 10)
    for _ in range(50):
        last = int(drafter.propose(1).tokens[0])
        drafter.drafted(Bid.free(4))
        then = (last + 9) % VOCABULARY
        drafter.observe(Tree.chain((last,)), Verdict((0,), then), scores_of([then]), 0)
    first, second, _ = (row[0] for row in drafter.chances.of([[0.9]] * 3))
    assert first < 0.1
    assert second == pytest.approx(0.9)


def test_one_call_answers_for_all_that_wait_and_none_twice() -> None:
    heads = Known()
    base = made(heads)
    drafters = [begun(base.fork(), token) for token in (10, 20, 30)]
    trees = [drafter.drafted(Bid.free(2)) for drafter in drafters]
    assert [tree.tokens.tolist() for tree in trees] == [[10, 11], [20, 21], [30, 31]]
    assert heads.calls == [3]
    assert [drafter.reads for drafter in drafters] == [1, 0, 0]
    again = drafters[1].drafted(Bid.free(3))
    assert again.tokens.tolist()[:2] == [20, 21]
    assert heads.calls == [3]
    chain = Tree.chain((10, 11))
    drafters[0].observe(chain, Verdict((0, 1), 12), scores_of([11, 12]), 0)
    assert drafters[0].drafted(Bid.free(2)).tokens.tolist() == [12, 13]
    assert heads.calls == [3, 1], "the others' answers still hold"


def test_sequences_that_have_ended_are_asked_about_no_more() -> None:
    heads = Known()
    base = made(heads)
    kept, gone = begun(base.fork(), 10), begun(base.fork(), 20)
    del gone
    gc.collect()
    kept.drafted(Bid.free(2))
    assert heads.calls == [1]


def test_the_state_is_that_of_the_row_that_chose_the_last_token() -> None:
    """The row of the deepest accepted node, not of the last scored one."""
    drafter = begun(made(Known()), 10)
    tree = Tree(np.asarray([10, 11, 12, 13]), np.asarray([-1, 0, 0, 1]))
    drafter.observe(tree, Verdict((0, 2), 25), scores_of([11, 40, 25, 41]), 0)
    assert drafter.drafted(Bid.free(2)).tokens.tolist() == [25, 26]


def test_a_first_class_is_hoped_for_less_than_a_sure_one() -> None:
    drafter = made(Known())
    unsure, sure = (drafter.hope(signal) for signal in (1, 4))
    assert unsure[0] == sure[0] == 1.0
    assert all(a < b for a, b in zip(unsure[1:], sure[1:], strict=True))
    assert list(sure) == sorted(sure, reverse=True)


def test_what_came_is_learned_and_leads_the_next_draft() -> None:
    """The heads' second candidates are right, whatever the heads believe."""
    drafter = begun(made(Known()), 10)
    assert drafter.drafted(Bid.free(2)).tokens.tolist() == [10, 11]
    for _ in range(40):
        last = int(drafter.propose(1).tokens[0])
        drafter.drafted(Bid.free(2))
        then = (last + 2) % VOCABULARY
        drafter.observe(Tree.chain((last,)), Verdict((0,), then), scores_of([then]), 0)
    last = int(drafter.propose(1).tokens[0])
    assert drafter.drafted(Bid.free(2)).tokens.tolist() == [last, (last + 2) % VOCABULARY]


def test_published_trees_are_cut_to_the_heads_and_candidates() -> None:
    drafter = begun(made(Known(heads=2, width=3), tree="medusa-mc-sim-7b-63"), 10)
    tree = drafter.drafted(Bid.free(32))
    assert int(tree.depth.max()) == 2
    assert {int(t) for t in tree.tokens[list(tree.children[0])]} == {11, 12, 13}
    assert len(drafter.drafted(Bid.free(4))) == 4
    with pytest.raises(GraftlineError, match="unknown tree 'medusa-x'"):
        made(Known(), tree="medusa-x")


def test_what_is_missing_is_said() -> None:
    with pytest.raises(GraftlineError, match=r"medusa needs a head here; .*--head PATH"):
        make_drafter("medusa", {}, Resources())
    with pytest.raises(GraftlineError, match="rows=1 is not valid"):
        Medusa(rows=1)
    with pytest.raises(GraftlineError, match=r"with the pass tap\{layers=norm\}"):
        Reading().note(scores_of([3], hidden=False), 0, 0, 3)
