"""Shapes of trees: the best there are on small sizes, and as their papers say by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from toy_session import FLAT, INT4
from tree_cases import FREE, RANKS, spelled

from graftline.errors import GraftlineError
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.levels import Levels
from graftline.runtimes.trees.blocks import block_tree
from graftline.runtimes.trees.dynamic import Growth, grow
from graftline.runtimes.trees.learned import by_rank
from graftline.runtimes.trees.merge import merge
from graftline.runtimes.trees.optimal import best_tree, cost_of
from graftline.runtimes.trees.static import PUBLISHED, static
from graftline.runtimes.trees.template import Ranks, Template
from graftline.tree import Doubles, Draws, Ints, Tree

# -- the best tree of a size


def brute_force(accuracies: Sequence[Sequence[float]], rows: int, deepest: int) -> float:
    """The largest expected number of tokens over every tree there is."""
    width = len(accuracies[0])
    chance: dict[Ranks, float] = {(): 1.0}
    for depth in range(1, deepest + 1):
        for path in itertools.product(range(width), repeat=depth):
            shares = accuracies[min(depth - 1, len(accuracies) - 1)]
            chance[path] = chance[path[:-1]] * shares[path[-1]]
    others = [p for p in chance if p]
    best = 1.0
    for count in range(1, rows):
        for chosen in itertools.combinations(others, count):
            if all(p[:-1] in chosen or len(p) == 1 for p in chosen):
                best = max(best, 1.0 + sum(chance[p] for p in chosen))
    return best


def sequoia(p: Sequence[float], rows: int, deepest: int) -> float:
    """Sequoia's dynamic programme (arXiv 2402.12374, section 3.1): T(n, d), the best expected
    number of tokens of a tree of n nodes and depth d, over how n - 1 nodes are split over ranks."""

    @cache
    def tree(count: int, depth: int) -> float:
        return 1.0 + (children(count - 1, 0, depth - 1) if depth else 0.0)

    @cache
    def children(count: int, rank: int, depth: int) -> float:
        if count == 0 or rank == len(p):
            return 0.0
        skip = children(count, rank + 1, depth)
        taken = (
            p[rank] * tree(size, depth) + children(count - size, rank + 1, depth)
            for size in range(1, count + 1)
        )
        return max(skip, *taken)

    return max(tree(n, deepest) for n in range(1, rows + 1))


@pytest.mark.parametrize("seed", range(6))
def test_no_tree_of_the_size_expects_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accuracies = [(row / row.sum() * 0.9).tolist() for row in rng.random((2, 2))]
    for rows, deepest in itertools.product(range(1, 6), range(1, 4)):
        found = by_rank(accuracies, rows, deepest)
        assert found.expected == pytest.approx(brute_force(accuracies, rows, deepest))
        assert int(found.shape.depth.max()) <= deepest


@pytest.mark.parametrize("p", [(0.6, 0.2, 0.1), (0.4, 0.3, 0.2, 0.05), (0.9,), (0.25,) * 4])
def test_the_best_trees_are_those_of_sequoias_dynamic_programme(p: tuple[float, ...]) -> None:
    for rows, deepest in itertools.product((1, 2, 3, 5, 9, 16), (1, 2, 4, 8)):
        assert by_rank([p], rows, deepest).expected == pytest.approx(sequoia(p, rows, deepest))


def test_more_rows_or_depth_never_expect_less_and_rows_are_nested() -> None:
    large = by_rank(RANKS, 40)
    assert list(large.chances) == sorted(large.chances, reverse=True)
    for rows in range(1, 40):
        small = by_rank(RANKS, rows)
        assert small.paths == large.paths[:rows] == large.first(rows).paths
        assert small.expected < by_rank(RANKS, rows + 1).expected
        deeper = [by_rank(RANKS, rows, d).expected for d in range(1, 6)]
        assert deeper == sorted(deeper)


@pytest.mark.parametrize("costs", [FLAT, INT4, Costs({1: 1.0, 64: 64.0}, {})])
def test_the_size_is_the_one_with_the_most_tokens_per_millisecond(costs: Costs) -> None:
    found = best_tree(RANKS, costs, rows=12, deepest=4)
    alone = [[0.5]]
    rates = [
        (part := by_rank(shares, rows, depth)).expected / cost_of(part, costs)
        for shares in (alone, RANKS)
        for rows in range(1, 13)
        for depth in range(1, 5)
    ]
    assert found.rate == pytest.approx(max(rates))
    assert found.tokens / found.milliseconds == found.rate


def test_dear_rows_want_none_cheap_ones_all_and_dear_drafting_shallow_trees() -> None:
    dear = best_tree([[0.3, 0.1]], Costs({1: 1.0, 64: 64.0}, {}), rows=16, deepest=4)
    cheap = best_tree([[0.3, 0.1]], FREE, rows=16, deepest=4)
    slow = best_tree([[0.3, 0.1]], FREE, rows=16, deepest=4, drafting=2.0)
    assert len(dear.template) == 1
    assert len(cheap.template) == 16
    assert int(slow.template.shape.depth.max()) < int(cheap.template.shape.depth.max())


def test_a_chain_is_taken_where_the_tree_mask_costs() -> None:
    masked = Costs({1: 10.0, 2: 10.1, 8: 10.7}, {2: 30.0, 8: 31.0})
    found = best_tree(RANKS, masked, rows=8, deepest=4)
    assert found.template.shape.is_chain
    assert len(found.template) > 2
    assert found.milliseconds == masked.of(len(found.template))


# -- templates and published trees


@pytest.mark.parametrize(
    ("name", "rows", "depth"),
    [
        ("medusa-mc-sim-7b-63", 64, 4),
        ("medusa-vicuna-7b-stage2", 64, 4),
        ("eagle-mc-sim-7b-63", 26, 5),
    ],
)
def test_published_trees_are_whole_and_best_rows_come_first(
    name: str, rows: int, depth: int
) -> None:
    tree = static(name, [[0.5**r for r in range(1, 11)]])
    assert len(tree) == rows
    assert int(tree.shape.depth.max()) == depth
    assert set(tree.paths[1:]) == set(PUBLISHED[name])
    assert list(tree.chances) == sorted(tree.chances, reverse=True)
    assert tree.paths[1] == (0,)


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ("medusa-mc-sim-7b-36", "did you mean 'medusa-mc-sim-7b-63'"),
        ([(0,), (1, 0)], r"\(1, 0\) has no parent"),
        ([(0,), (7,)], "takes rank 7, and there are 3"),
        ([(-1,)], "takes rank -1"),
    ],
)
def test_a_list_that_is_no_tree_is_refused(paths: str | list[Ranks], told: str) -> None:
    with pytest.raises(GraftlineError, match=told):
        static(paths, RANKS)


def test_a_template_is_stored_and_read_back() -> None:
    made = static([(0,), (2,), (0, 1), (2, 0)], RANKS)
    again = Template.from_json(made.to_json())
    assert again.paths == made.paths
    assert again.chances == made.chances
    assert [level.tolist() for level in again.levels] == [[1, 2], [3, 4]]
    assert made.within(2).paths == ((), (0,), (0, 1))
    for key, wrong in (
        ("parents", [-1, 0, 0, 9, 2]),
        ("ranks", [0, 0]),
        ("chances", [1.0, 0.2, 0.5, 0.9, 0.1]),
        ("chances", [1.0, 0.2, 0.1, "x", 0.1]),
    ):
        with pytest.raises(GraftlineError, match=r"tree"):
            Template.from_json(made.to_json() | {key: wrong})


def test_blocks_begin_at_the_best_ends_of_the_blocks_before() -> None:
    made = block_tree([(2, 1), (1, 2)], [2], [[0.6, 0.3], [0.5, 0.2]])
    tree = made.template
    assert len(tree) == 1 + 4 + 2 * (1 + 2)
    assert made.passes[0] == (0,)
    assert [tree.paths[row] for row in made.passes[1]] == [(0, 0), (1, 0)]
    assert set(tree.paths) >= {(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 1)}
    narrow = block_tree([(2, 1), (1, 2)], [1], [[0.6, 0.3], [0.5, 0.2]])
    assert [narrow.template.paths[row] for row in narrow.passes[1]] == [(0, 0)]
    with pytest.raises(GraftlineError, match="2 passes need 1 numbers"):
        block_tree([(1,), (1,)], [], RANKS)
    with pytest.raises(GraftlineError, match="use 1 to 3"):
        block_tree([(4,)], [], RANKS)


# -- dynamic trees


TABLE = {
    (9,): {1: 0.6, 2: 0.3, 3: 0.1},
    (9, 1): {4: 0.9, 5: 0.1},
    (9, 2): {6: 0.5, 7: 0.5},
    (9, 1, 4): {8: 0.2, 1: 0.8},
}


def from_table(tree: Tree, nodes: Sequence[int]) -> tuple[Ints, Doubles]:
    paths = spelled(tree)
    rows = [TABLE.get(paths[node], {}) for node in nodes]
    ids, probs = np.full((len(rows), 3), 0, np.int64), np.zeros((len(rows), 3))
    for place, row in enumerate(rows):
        ids[place, : len(row)], probs[place, : len(row)] = list(row), list(row.values())
    return ids, probs


def test_eagle2_expands_by_value_and_keeps_the_best_of_all() -> None:
    # values: 1: .6, 14: .54, 141: .432, 2: .3, 26 and 27: .15, 148: .108, 3: .1 not expanded
    tree = grow(9, from_table, rows=7, depth=3, width=2)
    assert spelled(tree) == [
        (9,), (9, 1), (9, 1, 4), (9, 1, 4, 1), (9, 2), (9, 2, 6), (9, 2, 7)
    ]  # fmt: skip
    assert tree.probs is not None
    assert tree.probs.tolist() == pytest.approx([1.0, 0.6, 0.9, 0.8, 0.3, 0.5, 0.5])
    assert tree.draws is None
    for rows in range(1, 8):
        assert spelled(grow(9, from_table, rows, 3, 2)) == spelled(tree)[:rows]
    assert spelled(grow(9, from_table, rows=7, depth=1, width=2)) == [(9,), (9, 1), (9, 2)]


def test_only_the_widest_values_of_a_layer_are_expanded() -> None:
    asked: list[list[tuple[int, ...]]] = []

    def watched(tree: Tree, nodes: Sequence[int]) -> tuple[Ints, Doubles]:
        asked.append([spelled(tree)[node] for node in nodes])
        return from_table(tree, nodes)

    grow(9, watched, rows=50, depth=3, width=2)
    assert asked == [[(9,)], [(9, 1), (9, 2)], [(9, 1, 4), (9, 2, 6)]]


# -- merged trees


def test_merged_trees_are_the_union_of_their_paths_likeliest_first() -> None:
    own = Tree(np.array([1, 2, 3, 4]), np.array([-1, 0, 1, 0]))
    retrieved = Tree.chain([1, 2, 5, 6])
    union = merge([own, retrieved], [[1, 0.5, 0.3, 0.2], [1, 0.7, 0.6, 0.1]], 10)
    assert spelled(union) == [(1,), (1, 2), (1, 2, 5), (1, 2, 3), (1, 4), (1, 2, 5, 6)]
    assert union.probs is not None
    assert union.probs.tolist() == pytest.approx([1, 0.7, 0.6 / 0.7, 0.3 / 0.7, 0.2, 1 / 6])
    for rows in range(1, 6):
        cut = merge([own, retrieved], [[1, 0.5, 0.3, 0.2], [1, 0.7, 0.6, 0.1]], rows)
        assert spelled(cut) == spelled(union)[:rows]


def test_merging_prunes_what_is_unlikely_and_keeps_parents_first() -> None:
    chain = Tree.chain([1, 2, 3, 4])
    assert spelled(merge([chain], [[1, 0.5, 0.2, 0.1]], 9, least=0.2))[-1] == (1, 2, 3)
    assert spelled(merge([chain], [[1, 0.2, 0.9, 0.9]], 9)) == spelled(chain)  # rising: capped
    assert spelled(merge([chain], [[1, 0.5, float("nan"), 0.4]], 9)) == [(1,), (1, 2)]


def test_drawn_or_differently_rooted_trees_are_not_merged() -> None:
    chain = Tree.chain([1, 2])
    drawn = Tree(chain.tokens, chain.parents, draws={0: Draws(np.full(4, 0.25), (1,))})
    with pytest.raises(ValueError, match="no drawn children"):
        merge([chain, drawn], [[1, 0.5], [1, 0.5]], 4)
    with pytest.raises(ValueError, match="start at one token"):
        merge([chain, Tree.chain([3, 2])], [[1, 0.5], [1, 0.5]], 4)


# -- trees that a draft reads depth by depth


class Reads:
    """Notes what it is asked to read."""

    def __init__(self) -> None:
        self.chains: list[list[int]] = []
        self.levels: list[tuple[Any, ...]] = []

    def read(self, ahead: Sequence[int]) -> None:
        self.chains.append(list(ahead))

    def level(self, *asked: Any) -> None:
        self.levels.append(asked)


def test_a_tree_is_read_as_a_chain_until_it_branches_and_by_what_its_nodes_see_then() -> None:
    reads: Any = Reads()
    growth = Growth(9, 2)
    levels = Levels(reads, growth)
    levels.read([0])
    growth.expand([0], [[1, 2]], [[0.6, 0.3]])
    levels.read(growth.layer[:1])
    growth.expand([1], [[3, 4]], [[0.9, 0.8]])
    assert (reads.chains, reads.levels) == ([[], [1]], [])
    levels.read(growth.layer)
    growth.expand(growth.layer, [[5, 6], [7, 8]], [[0.1, 0.2], [0.9, 0.4]])
    levels.read(growth.layer[:1])
    tree = levels.tree()
    assert spelled(tree) == [(9,), (9, 1), (9, 1, 3), (9, 1, 4), (9, 1, 4, 7)]
    for (tokens, first, depth, seen, _), count in zip(reads.levels, (2, 1), strict=True):
        rows = slice(first, first + count)
        assert tokens == tree.token_list[rows]
        assert [depth] * count == tree.depth[rows].tolist()
        assert np.array_equal(seen, tree.mask[rows, 1 : first + count])


def test_candidates_of_no_chance_are_no_nodes() -> None:
    growth = Growth(9, 3)
    growth.expand([0], [[1, 2, 3, 4]], [[float("nan"), 0.0, 0.2, 2.0]])
    assert (growth.tokens, growth.given, growth.layer) == ([9, 4, 3], [1.0, 1.0, 0.2], [1, 2])
