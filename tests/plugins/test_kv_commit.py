"""KVCommit: function and kernel do what moving row by row does, and touch nothing else."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graftline.plugins import PLUGINS

from .cases import kv_commit
from .conftest import Interpret, meaning, referred

COMMIT = PLUGINS["KVCommit"]


SHAPES = [(1, [0], 1, 16), (2, [3, 0], 8, 20), (4, [5], 33, 16), (3, [2, 9, 4], 17, 64)]


@pytest.mark.parametrize(("layers", "lengths", "places", "size"), SHAPES)
def test_function_equals_the_reference(
    layers: int, lengths: list[int], places: int, size: int
) -> None:
    for seed in range(3):
        _, inputs, _ = kv_commit(seed, layers, lengths, places, size)
        np.testing.assert_array_equal(meaning(COMMIT, inputs)[0], referred(COMMIT, inputs)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("layers", "lengths", "places", "size"), SHAPES)
def test_kernel_in_place_equals_the_reference(
    interpret: Interpret, layers: int, lengths: list[int], places: int, size: int, dtype: type
) -> None:
    _, inputs, _ = kv_commit(7, layers, lengths, places, size, dtype)
    got, want = (f(COMMIT, inputs)[0] for f in (interpret, referred))
    np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


def test_rows_that_are_in_place_are_not_moved(interpret: Interpret) -> None:
    _, (cache, _, _, lengths), _ = kv_commit(0, 1, [2], 4, 16)
    chain = [cache, np.arange(4)[None], np.array([4]), lengths]
    np.testing.assert_array_equal(interpret(COMMIT, chain)[0], cache)
