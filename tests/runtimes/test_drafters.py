"""What each drafter proposes on contexts small enough to see."""

from __future__ import annotations

import numpy as np
import pytest

from graftline.runtimes.drafter import Drafter
from graftline.runtimes.drafters.prompt_lookup import PromptLookup
from graftline.runtimes.drafters.suffix import Suffix, SuffixAutomaton
from graftline.runtimes.drafters.token_recycling import TokenRecycling, template
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.packing import first_path, pack, trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

NOTHING = Scores(np.zeros((1, 1), np.int64), np.zeros((1, 1, 1), np.float32))


def emit(drafter: Drafter, *tokens: int) -> None:
    for token in tokens:
        drafter.observe(Tree.chain([0]), Verdict((0,), token), NOTHING, 0)


def proposal(drafter: Drafter, budget: int) -> list[int]:
    return drafter.propose(budget).tokens.tolist()


@pytest.mark.parametrize("drafter", [PromptLookup(), Suffix()])
def test_a_repeated_phrase_is_continued(drafter: Drafter) -> None:
    drafter.start([1, 2, 3, 4, 5, 9, 8])
    assert proposal(drafter, 5) == [8]
    assert drafter.signal == 0
    emit(drafter, 2, 3)
    assert proposal(drafter, 5) == [3, 4, 5, 9, 8]
    assert drafter.signal == 2
    assert proposal(drafter, 1) == [3]


@pytest.mark.parametrize("drafter", [PromptLookup(), Suffix()])
def test_the_longest_match_wins(drafter: Drafter) -> None:
    drafter.start([1, 2, 3, 50, 9, 2, 3, 60, 8, 3, 70, 1, 2, 3])
    assert proposal(drafter, 2) == [3, 50]
    assert drafter.signal == 3


@pytest.mark.parametrize("drafter", [PromptLookup(), Suffix()])
def test_a_loop_is_drafted_past_the_end_of_the_context(drafter: Drafter) -> None:
    drafter.start([9, 1, 2, 1, 2, 1, 2])
    assert proposal(drafter, 9) == [2, 1, 2, 1, 2, 1, 2, 1, 2]


def test_lookup_takes_the_latest_and_suffix_the_most_frequent() -> None:
    context = [5, 1, 5, 1, 5, 2, 7, 5]
    lookup, suffix = PromptLookup(longest=1), Suffix()
    lookup.start(context)
    suffix.start(context)
    assert proposal(lookup, 2) == [5, 2]
    assert proposal(suffix, 2) == [5, 1]


def test_automaton_counts_every_substring() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        text = rng.integers(0, 3, 40).tolist()
        automaton = SuffixAutomaton()
        for token in text:
            automaton.extend(token)
        for _ in range(40):
            start = int(rng.integers(0, 38))
            part = text[start : start + int(rng.integers(1, 6))]
            state = 0
            for token in part:
                state = automaton.after[state][token]
            windows = [text[i : i + len(part)] for i in range(len(text))]
            assert automaton.count[state] == windows.count(part)
        longest = next((n for n in range(39, 0, -1) if _occurs(text[:-1], text[-n:])), 0)
        assert automaton.longest[automaton.match()] == longest


def _occurs(text: list[int], part: list[int]) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def test_suffix_trees_hold_the_alternatives() -> None:
    drafter = Suffix(branch=True)
    drafter.start([5, 1, 8, 5, 1, 9, 5, 2, 7, 5])
    tree = drafter.propose(6)
    assert [int(tree.tokens[k]) for k in tree.children[0]] == [1, 2]
    assert len(tree) == 6


def scored(ids: list[list[int]]) -> Scores:
    top = np.asarray([ids])
    logits = np.linspace(3, 0, top.shape[-1], dtype=np.float32)
    return Scores(
        top[..., 0], np.zeros((1, len(ids), 20), np.float32), top, np.tile(logits, (1, len(ids), 1))
    )


def test_recycling_builds_the_tree_from_candidates() -> None:
    drafter = TokenRecycling(rows=5, width=2)
    drafter.start([7])
    assert proposal(drafter, 5) == [7]
    drafter.observe(Tree.chain([7]), Verdict((0,), 1), scored([[1, 2]]), 0)
    assert proposal(drafter, 5) == [1]
    assert drafter.signal == 0
    drafter.observe(Tree.chain([1]), Verdict((0,), 7), scored([[3, 4]]), 0)
    tree = drafter.propose(5)
    assert drafter.signal > 0
    paths = {tuple(int(tree.tokens[n]) for n in tree.path_to(i)) for i in range(len(tree))}
    assert paths >= {(7,), (7, 1), (7, 2), (7, 1, 3)}
    assert all(path[1:2] != (2,) or len(path) == 2 for path in paths)  # 2 has no candidates yet
    assert drafter.fork().propose(5).tokens[0] == 0  # shares the matrix, not the sequence
    assert drafter.fork().adjacency is drafter.adjacency


def test_recycling_learns_from_rejected_rows_but_accepted_ones_win() -> None:
    drafter = TokenRecycling(rows=8, width=2)
    drafter.start([7])
    tree = Tree(np.array([7, 1, 2, 1]), np.array([-1, 0, 0, 2]))
    drafter.observe(tree, Verdict((0, 1), 5), scored([[1, 2], [5, 6], [8, 9], [3, 4]]), 0)
    assert drafter.adjacency is not None
    assert drafter.adjacency.candidates is not None
    assert drafter.adjacency.candidates[[7, 1, 2]].tolist() == [[1, 2], [5, 6], [8, 9]]


@pytest.mark.parametrize("drafter", [PromptLookup(), Suffix(), Suffix(branch=True)])
def test_proposals_are_nested(drafter: Drafter) -> None:
    drafter.start(np.random.default_rng(2).integers(0, 4, 60).tolist())
    large = drafter.propose(16)
    for rows in range(1, 17):
        small, cut = drafter.propose(rows), trim(large, rows)
        assert small.tokens.tolist() == cut.tokens.tolist()
        assert small.parents.tolist() == cut.parents.tolist()


def test_templates_are_nested_and_grow_wider_and_deeper() -> None:
    small, large = template(8, 8), template(32, 8)
    assert large.shape.parents[:8].tolist() == small.shape.parents.tolist()
    assert large.ranks[:8].tolist() == small.ranks.tolist()
    assert large.shape.depth.max() > small.shape.depth.max()
    assert list(large.chances) == sorted(large.chances, reverse=True)


def test_padding_rows_see_only_themselves_and_are_seen_by_nobody() -> None:
    tree = Tree(np.array([4, 5, 6]), np.array([-1, 0, 0]))
    tokens, depth, mask = pack([tree, Tree.chain([9])])
    assert tokens.tolist() == [[4, 5, 6], [9, 9, 9]]
    assert depth is not None
    assert mask is not None
    assert depth.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert mask[0].tolist() == tree.mask.tolist()
    assert mask[1].tolist() == np.eye(3, dtype=bool).tolist()
    assert pack([Tree.chain([1, 2]), Tree.chain([3])])[2] is None
    assert pack([Tree.chain([1])], least=2)[0].tolist() == [[1, 1]]


def test_trimming_keeps_what_was_computed() -> None:
    tree = Tree(np.array([1, 2, 3, 4, 5]), np.array([-1, 0, 0, 2, 1]))
    _ = tree.mask, tree.depth
    cut = trim(tree, 4)
    fresh = Tree(cut.tokens, cut.parents)
    assert cut.mask.tolist() == fresh.mask.tolist()
    assert cut.depth.tolist() == fresh.depth.tolist()
    assert first_path(tree).tokens.tolist() == [1, 2, 5]
