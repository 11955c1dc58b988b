"""PPD's drafter: what placeholders foretell, where they stand, and what their rows are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_session import FLAT, INT4

from graftline.errors import GraftlineError
from graftline.runtimes.chances.rank_rates import RankRates
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.ppd import Ppd
from graftline.runtimes.joint_step import JointStep
from graftline.runtimes.lane import Lane
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.packing import first_path, text_first, text_of
from graftline.runtimes.trees.placeholders import planted
from graftline.runtimes.trees.soundness import sound
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Tree

V, K, WIDTH = 900, 3, 4
FP32 = Costs(
    {1: 25.0, 2: 28.2, 4: 30.0, 8: 38.8, 16: 55.0, 32: 90.0},
    {1: 27.6, 2: 31.0, 4: 32.6, 8: 42.5, 16: 59.6, 32: 95.0},
)


def made(**options: object) -> Any:
    return make_drafter("ppd", {"width": WIDTH, **options},
                        Resources(vocabulary=V, placeholders=K))  # fmt: skip


def tree_of(tokens: Sequence[int], parents: Sequence[int], probs: Sequence[float] = ()) -> Tree:
    given = np.asarray(probs, np.float32) if probs else None
    return Tree(np.asarray(tokens), np.asarray(parents), given)


def foretelling(tree: Tree, ahead: Sequence[int], hits: Sequence[int] = (0,) * 9) -> Scores:
    """Every row says what comes at its depth; placeholder i names it by rank `hits[i]`, the others
    are junk."""
    best = [ahead[min(int(depth), len(ahead) - 1)] for depth in tree.depth]
    ids = np.asarray([[t, *range(800, 799 + WIDTH)] for t in best])
    for row, token in enumerate(tree.token_list):
        if token >= V:
            ids[row] = range(850, 850 + WIDTH)
            if hits[token - V] < WIDTH:
                ids[row, hits[token - V]] = best[row]
    logits = np.broadcast_to(-np.arange(WIDTH, dtype=np.float32), ids.shape)
    blank = np.broadcast_to(np.float32(0), (1, len(tree), V))
    return Scores(np.asarray([best]), blank, ids[None], logits[None])


# --- trees ------------------------------------------------------------------------------------


def test_placeholders_stand_where_the_text_most_likely_ends() -> None:
    """Root, 11 (0.6) and 12 (0.1) behind it, 13 (0.3) behind 11: the text ends at the root in 0.3,
    at 11 in 0.3, at 13 in 0.3 and at 12 in 0.1 of all cases."""
    text = tree_of([10, 11, 13, 12], [-1, 0, 1, 0], [1.0, 0.6, 0.5, 0.1])
    tree = planted(text, [0.5, 0.25], V, 99)
    assert tree.token_list[0] == 10
    reach = tree.reach
    assert reach == sorted(reach, reverse=True)
    paths = {tuple(tree.tokens[list(tree.path_to(n))[1:]].tolist()): reach[n]
             for n in range(1, len(tree))}  # fmt: skip
    wanted = {
        (11,): 0.6, (11, 13): 0.3, (12,): 0.1, (V,): 0.15, (V, V + 1): 0.075, (11, V): 0.15,
        (11, V, V + 1): 0.075, (11, 13, V): 0.15, (11, 13, V, V + 1): 0.075, (12, V): 0.05,
        (12, V, V + 1): 0.025,
    }  # fmt: skip
    assert paths.keys() == wanted.keys()
    for path, gain in wanted.items():
        assert paths[path] == pytest.approx(gain, abs=1e-6), path
    few = planted(text, [0.5, 0.25], V, 5)
    assert (few.token_list, few.parent_list) == (tree.token_list[:5], tree.parent_list[:5])


def test_a_try_behind_the_root_goes_before_all() -> None:
    text = tree_of([10, 11], [-1, 0], [1.0, 0.5])
    tree = planted(text, [0.0, 0.0], V, 99, least=1.5)
    assert tree.token_list == [10, V, V + 1, 11]
    assert tree.parent_list == [-1, 0, 1, 0]
    assert planted(text, [0.0, 0.0], V, 99).token_list == [10, 11], "what brings nothing is left"


def test_text_comes_first_where_rows_are_scored() -> None:
    tree = tree_of([10, V, 11, V + 1, V, 12], [-1, 0, 0, 1, 2, 2], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    moved = text_first(tree, V)
    assert moved.token_list == [10, 11, 12, V, V + 1, V]
    assert moved.parent_list == [-1, 0, 1, 0, 3, 1]
    assert moved.reach == pytest.approx([1.0, 0.8, 0.4, 0.9, 0.63, 0.48])
    assert text_of(moved, V).token_list == [10, 11, 12]
    assert text_first(moved, V) is moved
    assert first_path(moved).token_list == [10, 11, 12]
    assert first_path(moved).reach == pytest.approx([1.0, 0.8, 0.4])


def test_soundness_knows_how_many_placeholders_there_are() -> None:
    tree = tree_of([3, 4, V, V + 1, V], [-1, 0, 1, 2, 0])
    assert sound(tree, 3, V, 9, placeholders=2) is tree
    assert sound(tree, 3, V, 9, placeholders=1).token_list == [3, 4, V, V]
    assert sound(tree, 3, V, 9).token_list == [3, 4]
    below = tree_of([3, V, 5, 6, 4], [-1, 0, 1, 2, 0])
    assert sound(below, 3, V, 9, placeholders=2).token_list == [3, V, 4], "no text behind one"
    law = np.full(V, 1 / V)
    drawn = replace(tree_of([3, 4, V], [-1, 0, 0]), draws={0: Draws(law, (1,))})
    assert sound(drawn, 3, V, 9, placeholders=1) is drawn, "beside draws too"
    assert sound(drawn, 3, V, 9).token_list == [3, 4]


# --- the drafter ------------------------------------------------------------------------------


def begun() -> Ppd:
    drafter = made()
    drafter.start([1, 2, 3])
    drafter.observe(Tree.chain((3,)), Verdict((0,), 10), foretelling(Tree.chain((3,)), [10]), 0)
    return drafter


def test_what_is_foretold_behind_the_last_node_is_drafted() -> None:
    drafter = begun()
    tree = drafter.propose(8)
    assert tree.token_list == [10, V, V + 1, V + 2], "nothing is foretold yet"
    drafter.observe(tree, Verdict((0,), 11), foretelling(tree, [11, 12, 13, 14]), 0)
    tree = drafter.propose(32)
    assert tree.token_list[:2] == [11, 12]
    best = tree.token_list.index(13)
    assert tree.parent_list[best] == 1, "13 behind 12"
    ends = [n for n in range(len(tree)) if tree.token_list[n] == 14]
    assert any(V in [tree.token_list[k] for k in tree.children[n]] for n in ends), "at its end"


def test_only_the_chain_behind_the_last_accepted_node_is_read() -> None:
    drafter = begun()
    tree = tree_of([10, 11, 12, V, V, V, V + 1], [-1, 0, 0, 0, 1, 2, 4])
    scores = foretelling(tree, [11, 13, 14, 15, 16])
    assert scores.topk_ids is not None
    scores.topk_ids[0, 3], scores.topk_ids[0, 5] = [70, 71, 72, 73], [60, 61, 62, 63]
    drafter.observe(tree, Verdict((0, 2), 13), scores, 0)
    assert [ids[0] for ids, _ in drafter._told] == [60]
    drafter = begun()
    drafter.observe(tree, Verdict((0, 1), 13), scores, 0)
    assert [ids[0] for ids, _ in drafter._told] == [14, 15]


def test_a_graph_that_names_no_candidates_is_told_so() -> None:
    drafter = begun()
    tree = drafter.propose(8)
    bare = replace(foretelling(tree, [11]), topk_ids=None)
    with pytest.raises(GraftlineError, match=r"with the pass reduce-logits\{topk=8\}"):
        drafter.observe(tree, Verdict((0,), 11), bare, 0)
    drafter = made(width=8)
    with pytest.raises(GraftlineError, match="width=8, and this graph names 4 candidates"):
        drafter.observe(tree, Verdict((0,), 11), foretelling(tree, [11]), 0)
    with pytest.raises(GraftlineError, match="ppd needs a placeholder here"):
        make_drafter("ppd", {}, Resources(vocabulary=V))
    with pytest.raises(GraftlineError, match="rows=1, width=8 are not valid"):
        Ppd(rows=1)


# --- what rows are worth ----------------------------------------------------------------------


def test_candidates_to_come_are_worth_their_tokens_less_their_rows() -> None:
    rates = RankRates([[0.6, 0.2], [0.5, 0.1]])
    assert rates.worth(0.0, 99) == pytest.approx([0.8, 0.8 * 0.6])
    assert rates.worth(0.1, 99) == pytest.approx([0.8 - 0.2, 0.3 - 0.1])
    assert rates.worth(0.59, 99) == pytest.approx([0.01, 0.0])
    assert rates.worth(0.0, 1) == pytest.approx([0.6, 0.3]), "no more rows than there are"
    for _ in range(600):
        rates.record(0, [5, 6], 6)
    assert rates.rates()[0] == pytest.approx([0.0, 1.0], abs=0.03)


def decoded(
    accuracy: Sequence[float], costs: Costs, texts: int = 12, control: Any = None,
    drafter: Any = None, seed: int = 0,
) -> float:  # fmt: skip
    """Speed over plain, in simulated time, where placeholder i is right with chance accuracy[i]."""
    drafter = drafter or made()
    lane = Lane(control or Speculation("ppd", replace(costs), drafter.prior, text=V))
    spent = plain = 0.0
    for number in range(texts):
        random = np.random.default_rng((seed, number))
        answer: list[int] = random.integers(0, 700, 128).tolist()
        right = random.random((160, K)) < np.asarray(accuracy)
        one = Decoding(np.asarray([1, 2]), 128, frozenset(), drafter.fork(), Greedy(),
                       placeholders=K)  # fmt: skip
        lane.join(one)
        one.begin(foretelling(Tree.chain((2,)), answer), 0)
        while not one.done:
            step = JointStep([lane], [one], 1000, 1)
            step.plan(branches=True)
            tree, at = step.trees[0], len(one.tokens)
            ends = [0 if right[at, i] else WIDTH for i in range(K)]
            fresh = one.judge(tree, foretelling(tree, answer[at:], ends), 0)[1]
            took = costs.of(len(tree), not tree.is_chain)
            spent += took
            step.took(took, [(lane, one, fresh)])
        assert one.tokens == answer
        lane.leave(one)
        plain += 127 * costs.of(1)
    return plain / spent


@pytest.mark.parametrize(
    ("accuracy", "costs", "least"),
    [
        ((0.0, 0.0, 0.0), INT4, 0.98), ((0.0, 0.0, 0.0), FP32, 0.98),
        ((0.3, 0.2, 0.1), INT4, 0.98), ((0.3, 0.2, 0.1), FP32, 0.99),
        ((0.6, 0.5, 0.4), INT4, 0.98), ((0.6, 0.5, 0.4), FP32, 1.15),
        ((0.9, 0.9, 0.9), INT4, 0.99), ((0.9, 0.9, 0.9), FP32, 2.0),
        ((0.6, 0.5, 0.4), FLAT, 1.5),
    ],
)  # fmt: skip
def test_it_wins_where_it_can_and_loses_nothing(
    accuracy: Sequence[float], costs: Costs, least: float
) -> None:
    assert decoded(accuracy, costs) >= least


def test_no_number_of_rows_that_is_fixed_does_better() -> None:
    """What a row of a later step costs is taken off: trees are as large as both steps pay for."""
    accuracy, drafter = (0.6, 0.5, 0.4), made()
    chosen = decoded(accuracy, FP32)
    fixed = [decoded(accuracy, FP32, control=Speculation("ppd", None, drafter.prior, rows=rows))
             for rows in (3, 5, 8, 16)]  # fmt: skip
    assert chosen > max(fixed) * 0.99


def test_what_was_of_no_use_is_tried_again() -> None:
    drafter = made()
    control = Speculation("ppd", replace(FP32), drafter.prior, text=V)
    assert 0.98 < decoded((0.0, 0.0, 0.0), FP32, 8, control, drafter) < 1.0
    assert decoded((0.9, 0.9, 0.9), FP32, 24, control, drafter, seed=1) > 1.5
