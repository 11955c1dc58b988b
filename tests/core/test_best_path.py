"""The plain form of paths through a graph of vertices, by hand."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from graftline.best_path import best_paths, unlike_chances
from graftline.path_search import PathSearch

NEVER = -np.inf


def scored(tokens: list[int], vocabulary: int = 4) -> np.ndarray:
    """Scores of one row, by which each vertex surely has its token."""
    return np.where(np.arange(vocabulary) == np.asarray(tokens)[:, None], 40.0, 0)[None]


def ways(count: int, **chances: float) -> np.ndarray:
    """Transitions of one row by `from_to`, equal chances where nothing is said."""
    table = np.zeros((count, count))
    for name, chance in chances.items():
        table[tuple(int(n) for n in name.strip("_").split("_"))] = chance
    return np.where(np.triu(np.ones((count, count), bool), 1), table, NEVER)[None]


def path(scores: np.ndarray, links: np.ndarray, count: int, **how: Any) -> list[int]:
    """The vertices kept, by their states, which are their numbers."""
    states = np.arange(scores.shape[1])[None, :, None] + 0.5
    search = PathSearch(**how)
    found = best_paths(scores, links, states, np.asarray([count]), search)
    return [int(n) for n in found.states[0, : found.counts[0], 0]]


def test_of_equal_ones_the_first_and_to_the_last() -> None:
    assert path(scored([0, 1, 2, 3]), ways(4), 4) == [1, 2, 3]
    assert path(scored([0, 1, 2, 3]), ways(4, _0_2=1.0), 4) == [2, 3]


def test_a_row_ends_at_its_own_last_vertex() -> None:
    links = ways(4)
    links[0, :, 3] = NEVER
    assert path(scored([0, 1, 2, 3]), links, 3) == [1, 2]
    assert path(scored([0, 1, 2, 3]), ways(4), 2) == [1]


def test_tokens_that_come_again_and_padding_are_passed() -> None:
    assert path(scored([0, 0, 1, 1, 0, 0]), ways(6), 6) == [2, 4]
    assert path(scored([0, 1, 2, 1]), ways(4), 4, pad=2) == [1, 3]
    assert path(scored([2, 2, 2]), ways(3), 3) == []


def test_a_likelier_token_is_worth_a_way() -> None:
    scores = scored([0, 1, 2, 3])
    scores[0, 1] = 0  # four tokens alike: the logarithm of a quarter, -1.39
    assert path(scores, ways(4), 4) == [2, 3]
    assert path(scores, ways(4, _0_1=1.0), 4) == [2, 3]
    scores[0, 1, 1] = 1e-3  # its own token is the likeliest, by little
    assert path(scores, ways(4, _0_1=1.0), 4, beta=0.5) == [1, 2, 3]


def test_behind_a_rows_own_positions() -> None:
    scores = np.concatenate([scored([0, 1, 2, 3]), scored([0, 0, 0, 3])])
    links, states = np.concatenate([ways(4)] * 2), np.ones((2, 4, 2))
    found = best_paths(scores, links, states, np.asarray([4, 2]), PathSearch())
    assert found.counts.tolist() == [3, 0]
    np.testing.assert_array_equal(found.scores[1], [scores[1, 1]] * 3)
    np.testing.assert_array_equal(found.states[1], np.zeros((3, 2)))


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("longest", [2, 8])
def test_joint_viterbi_is_the_best_of_all_paths(penalty: float, longest: int) -> None:
    random, count = np.random.default_rng(5), 7
    for _ in range(4):
        scores = random.standard_normal((1, count, 9)) * 2
        scores[0, np.arange(count), np.arange(count)] += 9  # no two vertices have one token
        links = ways(count) + random.standard_normal((1, count, count))
        chances = np.log(np.exp(scores[0]).max(-1) / np.exp(scores[0]).sum(-1)) * 0.5
        totals = {
            inner: (sum(links[0, a, b] for a, b in pairwise((0, *inner, count - 1)))
                    + chances[0] + sum(chances[v] for v in inner)) / len(inner) ** penalty
            for size in range(1, min(longest, count - 2) + 1)
            for inner in combinations(range(1, count - 1), size)
        }  # fmt: skip
        best = max(totals, key=totals.__getitem__)
        how: dict[str, Any] = {"beta": 0.5, "penalty": penalty, "longest": longest}
        assert path(scores, links, count, by="joint-viterbi", **how) == list(best)


def test_joint_viterbi_keeps_the_last_of_a_run_and_the_last_vertex_of_a_path() -> None:
    how: dict[str, Any] = {"by": "joint-viterbi", "penalty": 0.0}
    links = ways(6, _0_1=1.0, _1_2=1.0, _2_3=1.0, _3_4=1.0, _4_5=1.0)
    assert path(scored([0, 1, 1, 2, 2, 0]), links, 6, **how) == [2, 4]
    assert path(scored([0, 1, 3, 2, 3, 0]), links, 6, pad=3, **how) == [1, 3, 4]
    assert path(scored([0, 1, 2, 3]), ways(4), 2, **how) == []


def logs(chances: list[list[float]]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log([chances])


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (logs([[0.0, 0.5], [0.0, 0.0]]), "vertex 0 of row 0 sum to 0.5, not 1"),
        (logs([[0.2, 0.8], [0.0, 0.0]]), "leads back, or to itself"),
        (np.asarray([[[0.0, 1.0], [0.0, 0.0]]]), "leads back"),
    ],
)
def test_what_is_no_chance_of_going_on(links: np.ndarray, message: str) -> None:
    assert message in unlike_chances(links, np.asarray([2]))
    assert unlike_chances(logs([[0.0, 1.0], [0.0, 0.0]]), np.asarray([2])) == ""
