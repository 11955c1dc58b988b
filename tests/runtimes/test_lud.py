"""Lexical Unit Decoding's drafter: which tokens are a unit, and what placeholders are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.lud import Runs
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

V, K = 50, 3


def made(**options: object) -> Any:
    return make_drafter("lud", options, Resources(vocabulary=V, placeholders=K))


def answer(tree: Tree, chances: Sequence[float]) -> Scores:
    """Placeholder i names token 20 + i with that probability."""
    logits = np.zeros((1, len(tree), V), np.float32)
    for row, token in enumerate(tree.token_list):
        if token >= V:
            chance = chances[token - V]
            logits[0, row, 20 + token - V] = np.log(chance * (V - 1) / (1 - chance))
    return Scores(logits.argmax(-1), logits)


def step(drafter: Any, chances: Sequence[float], own: int = 7, budget: int = 8) -> Tree:
    """A step in which all text stands."""
    tree = drafter.propose(budget)
    text = [node for node, token in enumerate(tree.token_list) if token < V]
    drafter.observe(tree, Verdict(tuple(text), own), answer(tree, chances), 0)
    return tree


def test_a_unit_ends_before_the_first_token_that_it_is_not_sure_of() -> None:
    drafter = made(threshold=0.8)
    drafter.start([1, 2])
    assert step(drafter, (0.9, 0.7, 0.99)).token_list == [2, V, V + 1, V + 2]
    assert step(drafter, (0.9, 0.85, 0.7), own=8).token_list == [7, 20, V, V + 1, V + 2]
    assert step(drafter, (0.1, 0.1, 0.1)).token_list[:3] == [8, 20, 21]
    assert step(drafter, (0.9, 0.9, 0.9)).token_list[:2] == [7, V]


def test_the_rows_bound_text_and_placeholders() -> None:
    drafter = made()
    drafter.start([2])
    assert step(drafter, (0.95,) * 3, budget=3).token_list == [2, V, V + 1]
    assert step(drafter, (0.95,) * 3, budget=3).token_list == [7, 20, 21]
    assert step(drafter, (0.95,) * 3, budget=3).token_list == [7, V, V + 1], "nothing was foretold"


def test_placeholders_are_worth_what_they_brought_less_the_row_that_reads_it() -> None:
    drafter = made()
    drafter.start([2])
    first = drafter.propose(8).reach
    np.testing.assert_allclose(first, [1.0, 0.7, 0.49, 0.343], rtol=1e-6)
    drafter.row = 0.5
    np.testing.assert_allclose(drafter.propose(8).reach, [1.0, 0.35, 0.245, 0.1715], rtol=1e-6)
    runs = Runs(3)
    for _ in range(300):
        runs.record(3, 1)
    assert runs.reach()[0] > 0.9
    assert max(runs.reach()[1:]) < 0.1


def test_where_nothing_pays_they_are_tried_by_and_by() -> None:
    drafter = made()
    drafter.start([2])
    drafter.row = 1.0
    lengths = [len(step(drafter, (0.5,) * 3)) for _ in range(40)]
    assert lengths[0] == 1
    assert max(lengths) == 4
    drafter.row, lone = 1.0, drafter.fork()
    lone.start([3])
    assert lone._runs is drafter._runs, "what is learned is shared"


def test_text_that_did_not_stand_ends_the_unit() -> None:
    """The rule stopped before the last token, behind which the placeholders are."""
    drafter = made()
    drafter.start([2])
    step(drafter, (0.95, 0.95, 0.95))
    tree = drafter.propose(8)
    drafter.observe(tree, Verdict((0, 1), 30), answer(tree, (0.95,) * 3), 0)
    assert drafter.propose(1).token_list == [30]
    assert drafter.propose(8).token_list[1] >= V


@pytest.mark.parametrize("options", [{"rows": 1}, {"threshold": 0.0}, {"threshold": 1.5}])
def test_values_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(GraftlineError, match="are not valid; use rows >= 2"):
        made(**options)


def test_without_placeholders_it_says_what_to_build() -> None:
    with pytest.raises(GraftlineError, match="--recipe lud"):
        make_drafter("lud", {}, Resources(vocabulary=V))
