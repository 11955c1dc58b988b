"""How many positions a host's own tables hold: the first read beyond one of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.passes.canonical.canonicalize import measure
from graftline.passes.canonical.rotary.tables import held_positions

_MOST = 64


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("out = Gather(table, positions)", 12),
        ("wide = Cast<to=11>(table) out = Gather(wide, positions)", 12),
        ("later = Add(positions, two) out = Gather(table, later)", 10),
        ("at = Min(positions, two) out = Gather(table, at)", _MOST),
        ("half = Div(positions, two) out = Gather(table, half)", 24),
        ("turned = RotaryEmbedding(x, table, table, positions) out = Identity(turned)", 12),
        ("turned = RotaryEmbedding(x, read, read) out = Identity(turned)", _MOST),
        ("n = Shape<start=1, end=2>(tokens) last = Sub(n, one) at = Sub(last, positions) "
         "out = Gather(table, at)", 12),
        ("n = Shape<start=1, end=2>(tokens) out = Slice(table, start, n, axes)", 12),
        ("n = Shape<start=1, end=2>(tokens) few = Min(n, eleven) "
         "out = Slice(table, start, few, axes)", _MOST),
        ("at = Gather(table, tokens) out = Identity(at)", _MOST),
    ],
)  # fmt: skip
def test_first_position_beyond_a_table(text: str, held: int) -> None:
    assert _held(text) == held


def test_a_table_without_the_first_tokens_row_is_refused() -> None:
    with pytest.raises(NotApplicable, match="a table of 12 rows is read beyond its end"):
        _held("at = Add(positions, far) out = Gather(table, at)")


def _held(text: str) -> int:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 24]>\n'
        "g (int64[B, N] tokens, int64[B, N] positions) => (out)"
        "<int64 two = {2}, int64[1] one = {1}, int64 far = {20}, int64[1] eleven = {11}, "
        "int64[1] start = {0}, int64[1] axes = {0}, float[1, 2, 5, 8] x, float[1, 5, 4] read>"
        "{ " + text + " }"
    )
    graph = model.graph
    rows = ir.tensor(np.zeros((12, 4), np.float32), name="table")
    table = ir.Value(name="table", const_value=rows, shape=ir.Shape((12, 4)))
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "table":
                node.replace_input_with(index, table)
    tokens, positions = graph.inputs
    return held_positions(graph, *measure(graph, tokens, positions), _MOST)
