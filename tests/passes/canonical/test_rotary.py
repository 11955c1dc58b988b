"""Every spelling of rotary positions becomes RotaryEmbedding, whatever normalizes the heads."""

from __future__ import annotations

import numpy as np
import pytest

from graftline.errors import NotApplicable
from tests.passes.canonical.canonical_host import canonical, ops, same_logits
from tests.passes.canonical.raw_decoder import (
    ANGLES,
    ATTEND,
    REPEAT,
    decoder,
    feed,
    turn,
)  # fmt: skip

INTERLEAVED = """
    {x}_p = Reshape({x}, pairs)
    {x}_e = Slice({x}_p, row_0, row_1, last)
    {x}_o = Slice({x}_p, row_1, two_rows, last)
    {x}_ec = Mul({x}_e, cos)
    {x}_os = Mul({x}_o, sin)
    {x}_es = Mul({x}_e, sin)
    {x}_oc = Mul({x}_o, cos)
    {x}_r0 = Sub({x}_ec, {x}_os)
    {x}_r1 = Add({x}_es, {x}_oc)
    {x}_r = Concat<axis = -1>({x}_r0, {x}_r1)
    {x}r = Reshape({x}_r, unpaired)
"""


def test_interleaved_rotary(monkeypatch: pytest.MonkeyPatch) -> None:
    from . import raw_decoder

    held = raw_decoder.weights()
    held["pairs"] = np.asarray([0, 0, -1, 3, 2], np.int64)
    held["unpaired"] = np.asarray([0, 0, 0, -1], np.int64)
    held["two_rows"] = np.asarray([2], np.int64)
    held["axes_14"] = np.asarray([1, 4], np.int64)
    monkeypatch.setattr(raw_decoder, "weights", lambda: held)
    angles = ANGLES.replace("Concat<axis = -1>(angle, angle)", "Identity(angle)").replace(
        "0, one_row)", "0, axes_14)")  # fmt: skip
    pieces = {"angles": angles,
              "rotary": INTERLEAVED.format(x="q") + INTERLEAVED.format(x="k")}  # fmt: skip
    raw, model = decoder(**pieces), canonical(decoder(**pieces))
    turned = [n for n in model.graph if n.op_type == "RotaryEmbedding"]
    assert [n.attributes.get_int("interleaved") for n in turned] == [1, 1]
    same_logits(raw, model, feed())


def unit(x: str, scale: str = "ones_of_head") -> str:
    """A norm of turned heads: `x`u from `x`r."""
    return f"{x}u = RMSNormalization<axis = -1, epsilon = 0.001>({x}r, {scale})\n"


NORMED = turn("q") + turn("k") + unit("q") + unit("k")
AFTER_NORM = {"repeat": REPEAT.replace("(kr,", "(ku,"), "attend": ATTEND.replace("(qr,", "(qu,")}


@pytest.mark.parametrize("scale", ["vector", "shape of the heads"])
def test_a_norm_of_turned_heads_is_taken_before_they_are_turned(scale: str) -> None:
    wide = "ones_of_head = Expand(one, head_size)\n"
    if scale != "vector":
        wide = "of_q = Shape(q)\nones_of_head = ConstantOfShape<value = float[1] {1.0}>(of_q)\n"
    text = NORMED if scale == "vector" else turn("q") + turn("k") + unit("q") + "ku = Identity(kr)"
    raw, model = (decoder(rotary=wide + text, **AFTER_NORM) for _ in range(2))
    model = canonical(model)
    (attention,) = [n for n in model.graph if n.op_type == "Attention"]
    turned = attention.inputs[0].producer()
    assert turned is not None
    assert turned.op_type == "RotaryEmbedding"
    assert turned.inputs[0].producer().op_type == "RMSNormalization"
    same_logits(raw, model, feed())


def test_a_norm_that_scales_turned_heads_unevenly_is_not_moved() -> None:
    """What is left where it is must read its angles as other values per position are read."""
    text = turn("q") + turn("k") + unit("q", "frequencies_of_head") + "ku = Identity(kr)"
    wide = "frequencies_of_head = Concat<axis = 0>(frequencies, frequencies)\n"
    with pytest.raises(NotApplicable, match="a value per position meets"):
        canonical(decoder(rotary=wide + text, **AFTER_NORM))


def test_a_norm_of_heads_that_are_longer_once_turned_is_not_moved() -> None:
    doubled = ANGLES.replace("cos0 =", "cos1 =").replace("sin0 =", "sin1 =").replace(
        "cos = ", "cos0 = Mul(cos1, two)\nsin0 = Mul(sin1, two)\ncos = ")  # fmt: skip
    wide = "ones_of_head = Expand(one, head_size)\n"
    with pytest.raises(NotApplicable, match="a value per position meets"):
        canonical(decoder(angles=doubled, rotary=wide + NORMED, **AFTER_NORM))


def test_partial_rotary_keeps_the_rest() -> None:
    def part(x: str) -> str:
        return f"""
    {x}_t = Slice({x}, row_0, four, last)
    {x}_p = Slice({x}, four, row_6, last)
    {x}_a = Slice({x}_t, row_0, two_rows, last)
    {x}_b = Slice({x}_t, two_rows, four, last)
    {x}_n = Neg({x}_b)
    {x}_h = Concat<axis = -1>({x}_n, {x}_a)
    {x}_c = Mul({x}_t, cos)
    {x}_s = Mul({x}_h, sin)
    {x}_r = Add({x}_c, {x}_s)
    {x}r = Concat<axis = -1>({x}_r, {x}_p)
"""

    text = "four = Mul(two_rows, two_rows)\ntwo_rows = Add(row_1, row_1)\n"
    text = "\n".join(reversed(text.strip().split("\n"))) + part("q") + part("k")
    angles = ANGLES.replace("Mul(at, frequencies)", "Mul(at, f2)")
    angles = "f2 = Slice(frequencies, row_0, up_to, axis_0)\nup_to = Add(row_1, row_1)\n" + angles
    lines = angles.split("\n")
    angles = "\n".join([lines[1], lines[0], *lines[2:]])
    raw, model = decoder(angles=angles, rotary=text), canonical(decoder(angles=angles, rotary=text))
    turned = [n for n in model.graph if n.op_type == "RotaryEmbedding"]
    assert [n.attributes.get_int("rotary_embedding_dim") for n in turned] == [4, 4]
    assert ops(model)["Slice"] == 0
    same_logits(raw, model, feed())
