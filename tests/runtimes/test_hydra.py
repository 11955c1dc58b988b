"""Hydra's drafter: a tree grown depth by depth, where asking a head again is worth it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

HIDDEN, VOCABULARY = 4, 97


class Adding:
    """Heads that say the sum of the tokens they read and of the state, and numbers behind it."""

    sequential, reads_last = True, False

    def __init__(self, heads: int = 3, width: int = 3) -> None:
        self.heads, self.width, self.hidden, self.milliseconds = heads, width, HIDDEN, 0.5
        self.calls: list[tuple[int, int]] = []

    def answer(self, hidden: Any, head: int = 0, tokens: Any = None) -> Any:
        assert tokens.shape == (len(hidden), head + 1)
        self.calls.append((head, len(hidden)))
        total = hidden[:, 0].astype(np.int64) + tokens.sum(axis=1)
        ids = (total[:, None, None] + np.arange(self.width)) % VOCABULARY
        return ids, np.broadcast_to(-2.0 * np.arange(self.width, dtype=np.float32), ids.shape)


def begun(heads: Any, state: int, root: int, **options: object) -> Any:
    drafter = make_drafter("hydra", options, Resources(head=lambda: heads))
    drafter.start([1, 2, 3])
    drafter.observe(Tree.chain((3,)), Verdict((0,), root), scores_of([state]), 0)
    return drafter


def scores_of(states: list[int]) -> Scores:
    hidden = np.zeros((1, len(states), HIDDEN), np.float32)
    hidden[0, :, 0] = states
    zeros = np.zeros((1, len(states)), np.int64)
    return Scores(zeros, np.zeros((1, len(states), VOCABULARY), np.float32), taps={FINAL: hidden})


def test_each_node_is_what_its_own_path_leads_to() -> None:
    heads = Adding()
    drafter = begun(heads, 5, 10)
    tree = drafter.drafted(Bid.free(14))
    assert len(tree) == 14
    assert int(tree.depth.max()) == 3
    for node in range(1, len(tree)):
        path = [int(tree.tokens[n]) for n in tree.path_to(int(tree.parents[node]))]
        rank = (int(tree.tokens[node]) - 5 - sum(path)) % VOCABULARY
        assert rank in range(3), "the state, the root and the path, and nothing of others"
    assert [head for head, _ in heads.calls] == [0, 1, 2], "one call a depth"
    assert heads.calls[0] == (0, 1)
    assert max(rows for _, rows in heads.calls) <= 4
    assert drafter.reads == 3
    assert drafter.price(3) == 1.5


def test_another_depth_is_asked_for_only_where_it_is_worth_a_call() -> None:
    heads = Adding()
    drafter = begun(heads, 5, 10)
    drafter.drafted(Bid(14, (0.0, 0.0, 1.1, *[0.0] * 11), (0.0,) * 14))
    assert heads.calls == [(0, 1)]
    heads.calls.clear()
    drafter.drafted(Bid(14, (0.0, 0.0, 0.0, 0.95, *[0.0] * 10), (0.0,) * 14))
    assert [head for head, _ in heads.calls] == [0, 1], "two sure tokens are not that sure"
    heads.calls.clear()
    tree = drafter.drafted(Bid(14, (0.0,) * 14, (0.0, 0.0, 0.9, *[0.9] * 11)))
    assert len(tree) == 2, "what is not worth scoring is left out"


def test_what_came_is_learned_along_its_path() -> None:
    """Second candidates are right at every depth."""
    heads = Adding()
    drafter = begun(heads, 5, 10)
    for _ in range(300):
        root = int(drafter.propose(1).tokens[0])
        state = int(drafter.reading.hidden[0])
        tree = drafter.drafted(Bid.free(13))
        path, accepted = [root], [0]
        for _ in range(3):
            path.append((state + sum(path) + 1) % VOCABULARY)
            child = [c for c in tree.children[accepted[-1]] if tree.tokens[c] == path[-1]]
            accepted += child
            if not child:
                break
        follows = (state + sum(path[: len(accepted)]) + 1) % VOCABULARY
        rows = scores_of([(7 * n) % 11 for n in range(len(tree))])
        drafter.observe(tree, Verdict(tuple(accepted), follows), rows, 0)
    for head in range(3):
        first, second, _ = drafter.chances.of_head(head, [0.85, 0.12, 0.03])
        assert second > 0.85 > 0.05 > first
    root, state = int(drafter.propose(1).tokens[0]), int(drafter.reading.hidden[0])
    chain = drafter.drafted(Bid.free(3))
    assert chain.is_chain
    expected = [root]
    for _ in range(2):
        expected.append((state + sum(expected) + 1) % VOCABULARY)
    assert chain.tokens.tolist() == expected


def test_forks_learn_together_and_read_apart() -> None:
    heads = Adding()
    base = begun(heads, 5, 10)
    other = base.fork()
    other.start([1, 2])
    other.observe(Tree.chain((2,)), Verdict((0,), 20), scores_of([1]), 0)
    assert other.chances is base.chances
    assert base.drafted(Bid.free(2)).tokens.tolist() == [10, 15]
    assert other.drafted(Bid.free(2)).tokens.tolist() == [20, 21]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(GraftlineError, match=r"hydra needs a head here; .*--head PATH"):
        make_drafter("hydra", {}, Resources())
    with pytest.raises(GraftlineError, match="width=0 is not valid"):
        make_drafter("hydra", {"width": 0}, Resources())
    with pytest.raises(GraftlineError, match="use the recipe hydra"):
        make_drafter("medusa", {}, Resources(head=Adding))
