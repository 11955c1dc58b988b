"""CandidateUpdate and DraftTree are the host's token recycling, step for step."""

from __future__ import annotations

import numpy as np

from graftline.plugins import PLUGINS
from graftline.runtimes.drafters.token_recycling import TokenRecycling, template
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import walk
from graftline.tree import Tree

from .conftest import meaning

ROWS, WIDTH, VOCABULARY = 12, 3, 10


def compact(tokens: np.ndarray, parents: np.ndarray) -> Tree:
    """The tree without the padding that DraftTree keeps where a candidate is missing."""
    kept = [n for n in range(len(tokens)) if n == 0 or parents[n] >= 0]
    return Tree(tokens[kept], np.array([-1, *(kept.index(parents[n]) for n in kept[1:])]))


def test_forty_steps_of_token_recycling() -> None:
    rng = np.random.default_rng(0)
    favourites = rng.integers(0, VOCABULARY, (VOCABULARY, WIDTH), dtype=np.int32)
    host = TokenRecycling(rows=ROWS, width=WIDTH)
    plan = template(ROWS, WIDTH)
    parents, ranks = plan.shape.parents, plan.ranks
    table = np.full((VOCABULARY, WIDTH), -1, np.int32)
    token, accepted = 5, 0
    host.start([token])
    for _ in range(40):
        drafted, kept = meaning(
            PLUGINS["DraftTree"], [table, np.array([token]), parents, ranks],
            {"levels": len(plan.levels)},
        )  # fmt: skip
        tree, fused = host.propose(ROWS), compact(drafted[0], kept[0])
        assert tree.tokens.tolist() == fused.tokens.tolist()
        assert tree.parents.tolist() == fused.parents.tolist()

        topk = favourites[drafted]  # the target likes the same tokens after a token, mostly
        topk[0, rng.random(ROWS) < 0.2] = rng.integers(0, VOCABULARY, WIDTH)
        choice = topk[..., 0].astype(np.int64)
        path, _, count, following = meaning(PLUGINS["TreeVerify"], [choice, drafted, kept])
        (table,) = meaning(PLUGINS["CandidateUpdate"], [table, drafted, kept, topk, path])

        rows = [n for n in range(ROWS) if n == 0 or kept[0, n] >= 0]
        scores = Scores(choice[:, rows], np.zeros((1, len(rows), VOCABULARY)), topk[:, rows])
        verdict = walk(tree, choice[0, rows].tolist().__getitem__)
        host.observe(tree, verdict, scores, 0)
        assert len(verdict.path) == count[0]
        assert verdict.next == following[0]
        assert host.adjacency is not None
        assert host.adjacency.candidates is not None
        np.testing.assert_array_equal(host.adjacency.candidates[:-1], table)
        token, accepted = int(following[0]), accepted + int(count[0]) - 1
    assert accepted > 5  # trees were drafted and taken, not only roots
