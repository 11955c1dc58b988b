"""A mask that is not understood is refused, by the name of its node and the reason."""

from __future__ import annotations

import pytest

from graftline.errors import CannotEvaluate, NotApplicable
from tests.passes.canonical.mask_hosts import AXES, SEEN, SPELLINGS, host
from tests.passes.canonical.mask_steps import AGAIN, attend, grafted
from tests.passes.canonical.raw_decoder import ATTEND, turn

PAD = AXES + """
    pad = Equal(tokens, n_7)
    real = Not(pad)
    real_4 = Unsqueeze(real, axes_12)
    near = And(past, real_4)""" + SEEN  # fmt: skip
EARLY = AXES + """
    early = Less(key_at, n_10)
    see = Or(past, early)
    bias = Where(see, nothing, lowest)
"""
OF_THE_LENGTH = AXES + """
    part = Div(size, n_3)
    late = GreaterOrEqual(key_at, part)
    self = Equal(key_at, query_at)
    near = Or(late, self)""" + SEEN  # fmt: skip
OF_THE_BATCH = AXES + """
    b_size = Squeeze(batch)
    b_order = Range(zero, b_size, one_step)
    b_4 = Unsqueeze(b_order, axes_123)
    reach = Add(b_4, n_5)
    near = Less(ago, reach)""" + SEEN  # fmt: skip
NOT_A_NUMBER = SPELLINGS["window added as -1e4"].replace("low_1e4", "minus_infinity_l")
SELFLESS = AXES + "\n    see = Less(key_at, query_at)\n    bias = Where(see, nothing, lowest)\n"
RELATIVE = """
    e = Gather(embed, tokens)
    p_f = Cast<to = 1>(positions)
    p_max = ReduceMax<keepdims = 1>(p_f, last)
    p_1 = Add(p_max, one)
    p_r = Div(p_f, p_1)
    p_3 = Unsqueeze(p_r, last)
    x = Add(e, p_3)
"""
SILENCED = """
    e = Gather(embed, tokens)
    marked = Equal(tokens, n_7)
    kept = Not(marked)
    factor = Cast<to = 1>(kept)
    factor_3 = Unsqueeze(factor, last)
    x = Mul(e, factor_3)
"""
OF_N = """
    of_n = Squeeze(length_1)
    of_n_f = Cast<to = 1>(of_n)
    of_n_40 = Div(of_n_f, f_40)
    gain = Max(of_n_40, one)
"""
LENGTH_1 = "length_1 = Shape<start = 1, end = 2>(tokens)" + OF_N
BY_LENGTH = turn("q").replace("qr =", "qj =") + turn("k") + LENGTH_1 + "qr = Mul(qj, gain)\n"
SCORES_BY_LENGTH = LENGTH_1 + ATTEND.replace(
    "scaled = Mul(scores, scale)", "s0 = Mul(scores, scale)\n    scaled = Mul(s0, gain)"
)
FUSED = """
    heads = Attention<{0}>(qr, kk, vv, bias)
    rows = Transpose<perm = [0, 2, 1, 3]>(heads)
    flat = Reshape(rows, joined)
    o = MatMul(flat, w_o)
    y = Add(x, o)"""
REFUSED = {
    "keys of a token hidden": (PAD, {}, r"depends on token values.*Equal pad"),
    "a prefix that sees itself": (EARLY, {}, r"see later positions.*cannot be decoded"),
    "another part of every length": (OF_THE_LENGTH, {}, r"how many tokens are fed"),
    "another window per row of the batch": (OF_THE_BATCH, {}, r"differs between rows of the batch"),
    "zero times minus infinity": (NOT_A_NUMBER, {}, "the mask holds NaN"),
    "rows that see nothing": (SELFLESS, {}, r"rows that see nothing"),
    "masked again beyond 40": ("causal", {"attend": attend(AGAIN)},
                               r"changed after the softmax.*at 41 positions.*Where again"),
    "probabilities clipped": ("causal", {"attend": attend("again = Clip(weights, tenth, one)")},
                              r"changed after the softmax.*Clip again"),
    "scores clipped": ("causal", {"attend": ATTEND.replace(
        "scaled = Mul(scores, scale)", "s0 = Mul(scores, scale)\n    scaled = Min(s0, f_40)")},
        r"clipped scores cannot be served.*Min scaled"),
    "softmax over queries": ("causal", {"attend": ATTEND.replace("axis = -1", "axis = 2")},
                             r"softmax runs over axis 2"),
    "a position relative to the last": ("causal", {"entry": RELATIVE},
                                        r"more than each token's own position.*Add x"),
    "an embedding silenced by its id": ("causal", {"entry": SILENCED},
                                        r"values of token ids .*Equal marked"),
    "queries scaled by the length from 40 on": ("causal", {"rotary": BY_LENGTH},
                                                r"number that depends on how many tokens.*Mul qr"),
    "scores scaled by the length from 40 on": ("causal", {"attend": SCORES_BY_LENGTH},
                                               r"depends on how many tokens are fed.*Mul scaled"),
    "softmax in fp16": ("causal", {"attend": FUSED.format("softmax_precision = 10")},
                        r"softmax_precision 10 is not supported"),
    "an unknown attribute": ("causal", {"attend": FUSED.format("left_window = 3")},
                             r"Unrecognized attribute: left_window.*Attention"),
}  # fmt: skip


@pytest.mark.parametrize(("mask", "pieces", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(mask: str, pieces: dict[str, str], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        grafted(host([mask], **pieces), "canonicalize{positions=512}")


def test_an_operator_nobody_knows_is_named() -> None:
    """It is neither causal nor no mask: it cannot be looked at."""
    model = host([AXES + "\n    near = Less(ago, n_40)" + SEEN])
    node = next(n for n in model.graph if n.outputs[0].name == "near_l0")
    node.domain, node.op_type = "unknown", "Mystery"
    model.opset_imports["unknown"] = 1
    with pytest.raises((CannotEvaluate, NotApplicable), match="Mystery near_l0"):
        grafted(model, "canonicalize{positions=512}")
