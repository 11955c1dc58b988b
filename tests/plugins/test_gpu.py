"""Kernels on a GPU against their references, where there is one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graftline.plugins import PLUGINS

from .cases import Case, every_plugin, kv_commit, tree_attention, tree_verify
from .conftest import referred
from .tensors import run_kernel

LARGE = [
    tree_verify(1, 32, 64, 9),
    kv_commit(1, 16, [1000, 3, 70], 64, 128),
    tree_attention(1, [4000, 17], 64, (8, 2), 128, 4096, scale=0.09),
    tree_attention(2, [900], 16, (32, 8), 64, 1000, np.float16, scale=0.12, window=200),
    tree_attention(3, [500], 33, (6, 2), 80, 600, ml_dtypes.bfloat16, scale=0.11, softcap=20.0),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*every_plugin(), *LARGE], ids=lambda c: c[0])
def test_kernel_equals_the_reference(case: Case) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton", reason="pip install graftline[kernels]")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    name, inputs, values = case
    got = run_kernel(PLUGINS[name], inputs, values, "cuda")
    want = referred(PLUGINS[name], inputs, values)
    for one, two in zip(got, want, strict=True):
        limit = {2: 2e-2, 4: 2e-4}.get(one.dtype.itemsize, 0)
        np.testing.assert_allclose(one.astype(float), two.astype(float), atol=limit, rtol=limit)
