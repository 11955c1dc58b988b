"""DEL over trees: the exit and the size of the tree whose rows bring most for what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.recipe import recipe
from graftline.runtimes.drafters.del_exits import Del
from graftline.runtimes.drafters.del_tree import DelTree
from graftline.runtimes.load import load
from tests.build.test_del import SilentBehind
from tests.free_engine import answers_are_plains, free
from tests.tiny_checkpoints import WIDE

SPEC = replace(WIDE, layers=3)
"""Of which the last block adds nothing, so that an exit behind the second drafts the truth."""


@pytest.fixture(scope="module")
def bundle(known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path, out = (tmp_path_factory.mktemp(name) for name in ("checkpoint", "exits"))
    known_checkpoints[path] = SilentBehind(path, SPEC)
    return optimize(path, out / "tree.graft", recipe="del-tree", exits=(1, 2))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(bundle: Bundle, temperature: float) -> None:
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    answers_are_plains(bundle.path, prompts, temperature)


def test_the_exit_that_is_right_is_found_and_trees_branch(bundle: Bundle) -> None:
    engine = free(bundle.path)
    for way in engine.resources.exits():
        way.engine.step, way.engine.agreement = way.blocks / SPEC.layers, 0.5
        way.engine.rows_cost = lambda rows: 0.9 + 0.1 * rows  # nothing hangs on this machine's pace
        object.__setattr__(way, "rest_cost", lambda rows, past, batch: 1.0 + 0.01 * rows)
    drafter = engine.policies.of(engine.recipe).drafter
    drafter.acceptance.price = 0.0  # nor does how often it looks: at every round
    steps: list[Any] = engine.explain()
    for prompt in ([1, 2, 3], [7, 8, 9]):
        engine.generate(prompt, max_new_tokens=60, ignore_eos=True)
    assert any(s.parents != tuple(range(-1, len(s.parents) - 1)) for s in steps)
    first, second = (drafter.acceptance.of(blocks) for blocks in (1, 2))
    assert second[0] > 0.75 > first[0]
    assert sum(first) <= 1.0
    assert max(second[1:]) < 0.15, "no other candidate is right where the first one is"
    assert drafter.fork()._exit.way.blocks == 2


def best_length(drafter: Del, shares: list[float], rest: float) -> tuple[float, int]:
    """Of an exit whose call takes 1, and each further row of one 0.1, in front of blocks that take
    `rest` and 0.1 a row."""
    engine = SimpleNamespace(step=1.0, rows_cost=lambda rows: 0.9 + 0.1 * rows)
    drafter.acceptance.shares[1] = shares, 1.0
    way: Any = SimpleNamespace(blocks=1, engine=engine)
    way.rest_cost = lambda rows, past, batch: rest + 0.1 * rows
    return drafter._best_length(way)


@pytest.mark.parametrize(("share", "rest"), [(0.9, 4.0), (0.5, 4.0), (0.8, 20.0)])
def test_a_chain_is_as_long_as_the_papers_ratio_says(share: float, rest: float) -> None:
    def ratio(rows: int) -> float:
        tokens = (1 - share ** (rows + 1)) / (1 - share)
        return tokens / ((rows + 1) + rest + 0.1 * (rows + 1))

    best = max(range(1, 12), key=ratio)
    for drafter, shares in ((Del(rows=12), [share]), (DelTree(rows=12), [share, 0.0, 0.0])):
        assert best_length(drafter, shares, rest) == (pytest.approx(ratio(best)), best)


def test_second_candidates_that_are_often_right_make_the_tree_larger_and_better() -> None:
    chain, tree = (
        best_length(DelTree(), shares, 10.0) for shares in ([0.5, 0.0, 0.0], [0.5, 0.3, 0.1])
    )
    assert tree[0] > 1.1 * chain[0]
    assert tree[1] > chain[1]


def test_trees_that_cannot_be_are_refused(bundle: Bundle) -> None:
    wide = replace(recipe("del-tree"), options={"width": 9})
    with pytest.raises(GraftlineError, match=r"del-tree: width=9, .* names 8 candidates"):
        load(bundle.path, recipe=wide)
    with pytest.raises(GraftlineError, match=r"del-tree: width=1"):
        DelTree(width=1)
