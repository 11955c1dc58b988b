"""TreeAttention: function, kernel and reference agree, and the tree means what it means."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from graftline.evaluate import Array
from graftline.plugins import PLUGINS
from graftline.plugins.spec import Values

from .cases import POISON, Case, attention_tolerance, tree_attention
from .conftest import Interpret, meaning, referred

ATTENTION = PLUGINS["TreeAttention"]


CASES: list[tuple[dict[str, object], Values]] = [
    (dict(lengths=[0], rows=1, heads=(1, 1), size=16, slots=1), {}),
    (dict(lengths=[0, 3], rows=5, heads=(2, 1), size=16, slots=9), {"scale": 0.25}),
    (dict(lengths=[70, 0], rows=7, heads=(6, 2), size=24, slots=80, padding=2), {"scale": 0.2}),
    (dict(lengths=[64], rows=33, heads=(3, 1), size=64, slots=97), {"scale": 0.125}),
    (dict(lengths=[20], rows=9, heads=(2, 2), size=16, slots=40), {"scale": 0.3, "softcap": 5.0}),
    (dict(lengths=[90, 2], rows=12, heads=(4, 2), size=16, slots=128), {"window": 6}),
    (dict(lengths=[5], rows=12, heads=(2, 1), size=16, slots=20), {"window": 2, "softcap": 3.0}),
    (dict(lengths=[3], rows=100, heads=(1, 1), size=16, slots=110), {"scale": 0.25, "window": 9}),
]


@pytest.mark.parametrize(("shape", "values"), CASES)
def test_function_equals_the_reference(shape: dict[str, object], values: Values) -> None:
    agrees(meaning, tree_attention(0, **shape, **values))


@pytest.mark.parametrize(("shape", "values"), CASES)
def test_kernel_equals_the_reference(
    interpret: Interpret, shape: dict[str, object], values: Values
) -> None:
    agrees(interpret, tree_attention(1, **shape, **values))


def agrees(way: Callable[..., list[Array]], case: Case) -> None:
    _, inputs, values = case
    (got,), (want,) = (f(ATTENTION, inputs, values) for f in (way, referred))
    assert (np.abs(got - want) <= attention_tolerance(case)).all()


@pytest.mark.parametrize(("dtype", "limit"), [(np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2)])
def test_kernel_in_half_precision(interpret: Interpret, dtype: type, limit: float) -> None:
    _, inputs, _ = tree_attention(2, [40, 3], 11, (4, 2), 32, 64, dtype)
    got, want = (f(ATTENTION, inputs, {"scale": 0.18})[0] for f in (interpret, referred))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(float), want.astype(float), atol=limit, rtol=limit)


def test_kernel_never_reads_behind_the_tree(interpret: Interpret) -> None:
    _, inputs, _ = tree_attention(3, [4, 9], 6, (2, 1), 16, 40)
    for x in inputs[1:3]:
        x[x == POISON] = np.nan
    assert np.isfinite(interpret(ATTENTION, inputs)[0]).all()


def test_a_branch_of_the_tree_is_the_same_as_its_chain() -> None:
    """What the kernel and the mask are for: siblings do not see each other."""
    case = tree_attention(4, [6], 4, (2, 1), 16, 12)
    query, key, value, _, lengths = case[1]
    both = np.array([[-1, 0, 0, 2]])
    alone = np.array([[-1, 0, 1]])
    kept = [0, 2, 3]
    slots = [*range(6), *(6 + np.array(kept)), *range(10, 12)]
    full = meaning(ATTENTION, [query, key, value, both, lengths])[0][:, :, kept]
    chain = [query[:, :, kept], key[:, :, slots], value[:, :, slots], alone, lengths]
    limit = attention_tolerance((case[0], chain, {}))
    assert (np.abs(full - meaning(ATTENTION, chain)[0]) <= limit).all()
