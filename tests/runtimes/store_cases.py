"""A small corpus, and a target that answers as it is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from toy_session import FLAT, ToySession

from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

CORPUS = (np.array([5, 1, 2, 3, 4, 9]), np.array([7, 1, 2, 3, 8]), np.array([6, 1, 2, 3, 4]))


SHELVES = Resources(corpus=CORPUS)


def policy(drafter: str, **options: object) -> Recipe:
    return Recipe(f"{drafter}{options}", "", "", True, (), "", drafter, "point-mass", options)


def engine(costs: Costs | None = FLAT, corpus: Sequence[Sequence[int]] = ([1, 2],)) -> Engine:
    shelves = Resources(corpus=tuple(np.asarray(text, np.int64) for text in corpus))
    return Engine(
        ToySession(), None, {"eos_token_id": 0}, recipe("plain"), costs, resources=shelves
    )


def answer(*best: Sequence[int], shares: Sequence[float] = (0.6, 0.3, 0.1)) -> Scores:
    """Scores of one sequence whose row i has the candidates `best[i]`, with these probabilities."""
    ids = np.asarray([best])
    logits = np.log(np.asarray(shares[: ids.shape[-1]], np.float32))
    logits = np.tile(logits, (1, len(best), 1))
    return Scores(ids[..., 0], np.zeros((1, len(best), 20), np.float32), ids, logits)


def emit(drafter: Drafter, root: int, *tokens: int, best: Sequence[int] = (0, 0, 0)) -> None:
    """Plain steps: each chooses one of the tokens; the target's candidates are always `best`."""
    for token in tokens:
        drafter.observe(Tree.chain([root]), Verdict((0,), token), answer(best), 0)
        root = token


def paths(tree: Tree) -> list[tuple[int, ...]]:
    """For every row the tokens from below the root to it."""
    return [tuple(int(tree.tokens[n]) for n in tree.path_to(i)[1:]) for i in range(len(tree))]
