"""TreeAttentionParts and TreeAttentionMerge: three meanings agree, and together they are one op."""

from __future__ import annotations

import numpy as np
import pytest

from graftline.plugins import PLUGINS
from graftline.plugins.tree_attention_parts import parts_for

from .cases import Case, attention_tolerance, parts_tolerance, tree_attention
from .conftest import Interpret, meaning, referred

PARTS, MERGE = PLUGINS["TreeAttentionParts"], PLUGINS["TreeAttentionMerge"]
CASES = [
    tree_attention(0, [0, 3], 5, (2, 1), 16, 9, scale=0.25, parts=2),
    tree_attention(1, [200, 70], 7, (4, 2), 24, 210, padding=2, scale=0.2, parts=3),
    tree_attention(2, [130], 40, (3, 1), 16, 170, softcap=5.0, window=30, parts=4),
    tree_attention(3, [65], 6, (2, 2), 16, 71, scale=0.3, parts=1),
]


@pytest.mark.parametrize("case", CASES)
def test_function_and_kernel_equal_the_reference(interpret: Interpret, case: Case) -> None:
    _, inputs, values = case
    want = referred(PARTS, inputs, values)
    for way in (meaning, interpret):
        got = way(PARTS, inputs, values)
        for one, two, limit in zip(got, want, parts_tolerance(case), strict=True):
            assert (np.abs(one - two) <= limit).all()


@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_tree_attention(interpret: Interpret, case: Case) -> None:
    _, inputs, values = case
    whole = {k: v for k, v in values.items() if k != "parts"}
    want = referred(PLUGINS["TreeAttention"], inputs, whole)[0]
    partial = [*referred(PARTS, inputs, values), inputs[0]]
    for way in (meaning, interpret, referred):
        assert (np.abs(way(MERGE, partial)[0] - want) <= attention_tolerance(case)).all()


def test_parts_fill_the_processors() -> None:
    assert parts_for(programs=8, slots=8192, processors=132) == 32
    assert parts_for(programs=512, slots=8192, processors=132) == 1
    assert parts_for(programs=8, slots=300, processors=132) == 1
