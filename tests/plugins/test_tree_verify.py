"""TreeVerify: function, kernel and reference agree, and are the host's rule."""

from __future__ import annotations

import numpy as np
import pytest

from graftline.plugins import PLUGINS
from graftline.runtimes.verdict import walk
from graftline.tree import Tree

from .cases import tree_verify
from .conftest import Interpret, meaning, referred

VERIFY = PLUGINS["TreeVerify"]


SHAPES = [(1, 1, 0), (1, 2, 0), (3, 7, 2), (2, 16, 5), (1, 33, 0), (2, 64, 9), (1, 100, 0)]


@pytest.mark.parametrize(("batch", "rows", "padding"), SHAPES)
def test_function_equals_the_host_walk(batch: int, rows: int, padding: int) -> None:
    for seed in range(4):
        _, inputs, _ = tree_verify(seed, batch, rows, padding)
        path, accepted, count, following = meaning(VERIFY, inputs)
        choice, tokens, parents = inputs
        for b in range(batch):
            real = rows - (padding if b else 0)
            host = Tree(tokens[b, :real], parents[b, :real])
            verdict = walk(host, choice[b].tolist().__getitem__)
            steps = len(verdict.path)
            assert count[b] == steps
            assert following[b] == verdict.next
            assert path[b].tolist() == [*verdict.path, *[-1] * (rows - steps)]
            assert accepted[b].tolist() == [*verdict.tokens(host), *[-1] * (rows - steps)]
        for one, two in zip(
            (path, accepted, count, following), referred(VERIFY, inputs), strict=True
        ):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("batch", "rows", "padding"), SHAPES)
def test_kernel_equals_the_reference(
    interpret: Interpret, batch: int, rows: int, padding: int
) -> None:
    _, inputs, _ = tree_verify(5, batch, rows, padding)
    for one, two in zip(interpret(VERIFY, inputs), referred(VERIFY, inputs), strict=True):
        np.testing.assert_array_equal(one, two)


def test_long_chains_are_followed_to_the_end() -> None:
    chain = np.arange(-1, 249)[None]
    count = meaning(VERIFY, [np.ones((1, 250), np.int64), np.ones((1, 250), np.int64), chain])[2]
    assert count.tolist() == [250]
