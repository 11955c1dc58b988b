"""Every spelling of attention becomes one node, and its mask is read and rebuilt from positions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.canonical.canonical_host import CANONICAL, canonical, mask_of, ops, same_logits
from tests.passes.canonical.raw_decoder import (
    ATTEND,
    decoder,
    feed,
)  # fmt: skip

ATTENTIONS = {
    "scale on the query": ATTEND.replace("MatMul(qr, kt)", "MatMul(qs, kt)").replace(
        "kt = ", "qs = Mul(qr, scale)\n    kt = "
    ).replace("Mul(scores, scale)", "Identity(scores)"),
    "masked by Where": ATTEND.replace("Add(scaled, bias)", "Where(see, scaled, lowest)"),
    "guarded against NaN": ATTEND.replace("heads = MatMul(weights, vv)", """
    nan = IsNaN(weights)
    sure = Where(nan, nothing, weights)
    heads = MatMul(sure, vv)"""),
    "one fused node": """
    heads = Attention<scale = 0.408248290463863>(qr, kk, vv, bias)
    rows = Transpose<perm = [0, 2, 1, 3]>(heads)
    flat = Reshape(rows, joined)
    o = MatMul(flat, w_o)
    y = Add(x, o)""",
    "one fused node over merged heads": """
    q_rows = Transpose<perm = [0, 2, 1, 3]>(qr)
    k_rows = Transpose<perm = [0, 2, 1, 3]>(kr)
    v_rows = Transpose<perm = [0, 2, 1, 3]>(v)
    q_flat = Reshape(q_rows, joined)
    k_flat = Reshape(k_rows, joined)
    v_flat = Reshape(v_rows, joined)
    flat = Attention<q_num_heads = 4, kv_num_heads = 2, is_causal = 1>(q_flat, k_flat, v_flat)
    o = MatMul(flat, w_o)
    y = Add(x, o)""",
}  # fmt: skip


@pytest.mark.parametrize("text", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_attention_spellings(text: str) -> None:
    raw, model = decoder(attend=text), canonical(decoder(attend=text))
    assert ops(model) == CANONICAL
    same_logits(raw, model, feed())


def test_soft_cap_before_the_mask() -> None:
    text = ATTEND.replace(
        "scaled = Mul(scores, scale)",
        """
    s0 = Mul(scores, scale)
    s1 = Div(s0, cap)
    s2 = Tanh(s1)
    scaled = Mul(s2, cap)""",
    )
    raw, model = decoder(attend=text), canonical(decoder(attend=text))
    (attention,) = [n for n in model.graph if n.op_type == "Attention"]
    assert attention.attributes.get_float("softcap") == pytest.approx(2.0)
    assert ops(model)["Tanh"] == 0
    same_logits(raw, model, feed())


WINDOW = """
    size = Squeeze(length)
    order = Range(zero, size, one_step)
    key_at = Unsqueeze(order, axis_0)
    query_at = Unsqueeze(order, one_row)
    past = LessOrEqual(key_at, query_at)
    ago = Sub(query_at, key_at)
    near = Less(ago, window)
    see = And(past, near)
    bias = Where(see, nothing, lowest)
"""
ALIBI = WINDOW.replace("near = Less(ago, window)", """
    key_number = Cast<to = 1>(key_at)
    tilt = Mul(slopes, key_number)""").replace("And(past, near)", "Identity(past)").replace(
    "bias = Where(see, nothing, lowest)", "bias = Where(see, tilt, lowest)")  # fmt: skip


def test_window_is_read_and_rebuilt_from_positions() -> None:
    raw, model = decoder(mask=WINDOW), canonical(decoder(mask=WINDOW))
    assert mask_of(model) == {"kind": "window", "size": 4}
    (attention,) = [n for n in model.graph if n.op_type == "Attention"]
    assert len(attention.inputs) == 4
    assert "is_causal" not in attention.attributes
    same_logits(raw, model, feed(length=9))


@pytest.mark.parametrize("size", [40, 4096, 100_000])
def test_window_larger_than_what_is_evaluated(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from . import raw_decoder

    held = raw_decoder.weights()
    held["window"] = np.int64(size)
    monkeypatch.setattr(raw_decoder, "weights", lambda: held)
    assert mask_of(canonical(decoder(mask=WINDOW))) == {"kind": "window", "size": size}


def test_alibi_slopes() -> None:
    raw, model = decoder(mask=ALIBI), canonical(decoder(mask=ALIBI))
    assert mask_of(model) == {"kind": "alibi", "slopes": [0.5, 0.25, 0.125, 0.0625]}
    same_logits(raw, model, feed())
