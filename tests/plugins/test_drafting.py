"""The operators that draft: function, kernel and reference agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graftline.plugins import PLUGINS

from .cases import Case, candidate_update, draft_tree, head_tree, tree_grow, tree_prune
from .conftest import Interpret, meaning, referred

CASES = [draft_tree, candidate_update, head_tree, tree_grow, tree_prune]
SHAPES = [(1, 1), (2, 5), (3, 16), (1, 33)]


@pytest.mark.parametrize(("batch", "rows"), SHAPES)
@pytest.mark.parametrize("made", CASES)
def test_function_equals_the_reference(
    made: Callable[..., Case], batch: int, rows: int
) -> None:
    for seed in range(3):
        name, inputs, values = made(seed, batch, rows)
        got, want = (f(PLUGINS[name], inputs, values) for f in (meaning, referred))
        for one, two in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("batch", "rows"), SHAPES)
@pytest.mark.parametrize("made", CASES)
def test_kernel_equals_the_reference(
    interpret: Interpret, made: Callable[..., Case], batch: int, rows: int
) -> None:
    name, inputs, values = made(9, batch, rows)
    got, want = (f(PLUGINS[name], inputs, values) for f in (interpret, referred))
    for one, two in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, two)
