"""What depends on a position alone is a table or dropped, if it changes no probability."""

from __future__ import annotations

import pytest

from graftline.evaluate import run
from tests.passes.canonical.mask_hosts import feed, host
from tests.passes.canonical.mask_steps import FRONT, LENGTH, attend, close, grafted, stepped
from tests.passes.canonical.raw_decoder import ANGLES, turn

PART = """
    {x}_t = Slice({x}, row_0, row_4, last)
    {x}_p = Slice({x}, row_4, row_6, last)
    {x}_a = Slice({x}_t, row_0, row_2, last)
    {x}_b = Slice({x}_t, row_2, row_4, last)
    {x}_n = Neg({x}_b)
    {x}_h = Concat<axis = -1>({x}_n, {x}_a)
    {x}_c = Mul({x}_t, cos)
    {x}_s = Mul({x}_h, sin)
    {x}_r = Add({x}_c, {x}_s)
    {x}j = Concat<axis = -1>({x}_r, {x}_p)
"""
PART_ANGLES = "frequencies_2 = Slice(frequencies, row_0, row_2, axis_0)\n" + ANGLES.replace(
    "Mul(at, frequencies)", "Mul(at, frequencies_2)"
)
GAIN = """
    gain_f = Cast<to = 1>(positions)
    gain_40 = Div(gain_f, f_40)
    gain_1 = Max(gain_40, one)
    gain_log = Log(gain_1)
    gain_part = Mul(gain_log, tenth)
    gain = Add(gain_part, one)
    gain_4 = Unsqueeze(gain, axes_13)
    qr = Mul(qj, gain_4)
    kr = Identity(kj)
"""
WHOLE = turn("q").replace("qr =", "qj =") + turn("k").replace("kr =", "kj =")
LIFTED = """
    e = Gather(embed, tokens)
    p_f = Cast<to = 1>(positions)
    p_over = Div(p_f, f_40)
    p_1 = Max(p_over, one)
    p_3 = Unsqueeze(p_1, last)
    x = Mul(e, p_3)
"""
LATE = """
    late_at = Unsqueeze(positions, axes_13)
    late = Less(late_at, n_40)
    qj = Mul(q, tenth)
    qr = Where(late, q, qj)
    kr = Identity(k)
"""
LATE_ENTRY = """
    e = Gather(embed, tokens)
    p = Gather(learned_long, positions)
    x = Add(e, p)
"""
PER_POSITION = {
    "query scale from 40 on over partial rotary": {
        "angles": PART_ANGLES, "rotary": PART.format(x="q") + PART.format(x="k") + GAIN},
    "query scale from 40 on over whole rotary": {"rotary": WHOLE + GAIN},
    "stream multiplier from 40 on": {"entry": LIFTED},
    "queries chosen by position, without rotary": {
        "angles": "", "entry": LATE_ENTRY, "rotary": LATE},
}  # fmt: skip


@pytest.mark.parametrize("pieces", PER_POSITION.values(), ids=PER_POSITION.keys())
def test_values_per_position_are_tables(pieces: dict[str, str]) -> None:
    given = feed(LENGTH)
    want = run(host(["causal"], **pieces), given)["logits"]
    model = grafted(host(["causal"], **pieces), FRONT)
    assert not {"Log", "Max", "Cast", "Div"} & {n.op_type for n in model.graph}
    close(stepped(model, given, [39, 30, 23]), want)


UNCHANGED = {
    "the same mask again": "\n    again = Where(see, weights, nothing)",
    "divided by their sum": """
    total = ReduceSum<keepdims = 1>(weights, last)
    again = Div(weights, total)""",
}


@pytest.mark.parametrize("text", UNCHANGED.values(), ids=UNCHANGED.keys())
def test_what_changes_no_probability_is_dropped(text: str) -> None:
    given = feed(20)
    want = run(host(["causal"], attend=attend(text)), given)["logits"]
    model = grafted(host(["causal"], attend=attend(text)), "canonicalize{positions=512}")
    assert not {"Where", "Div", "ReduceSum"} & {n.op_type for n in model.graph}
    close(run(model, given)["logits"], want)
