"""Canonicalize on a one-block decoder: every spelling becomes the same few nodes with the same
logits; what is not understood is refused by name."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.passes.canonical.canonicalize import Canonicalize
from graftline.passes.canonical.opset.opset import open_graph
from graftline.passes.grafts.masks import MASK_KEY
from graftline.ports import by_role, read_ports
from tests.rounding import assert_same_sums, decoder_terms

from .raw_decoder import (
    ANGLES,
    ATTEND,
    HEAD,
    INPUTS,
    LONGEST,
    MASK,
    NORM,
    REPEAT,
    SHAPE,
    decoder,
    feed,
    turn,
)  # fmt: skip

CANONICAL = Counter(
    Gather=1, RMSNormalization=1, MatMul=5, Reshape=4, Transpose=5, RotaryEmbedding=2, Attention=1,
    Add=1,
)  # fmt: skip


def canonical(model: ir.Model) -> ir.Model:
    graft = Canonicalize(positions=LONGEST)
    graft.requires(model)
    graft.apply(model)
    return model


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def mask_of(model: ir.Model) -> dict[str, object]:
    (node,) = [n for n in model.graph if n.op_type == "Attention"]
    return json.loads(node.metadata_props[MASK_KEY])


def same_logits(
    raw: ir.Model, changed: ir.Model, given: dict[str, np.ndarray], full: bool = True
) -> None:
    before = next(iter(run(raw, given).values()))
    canon = {k: given.get(k, feed()[k]) for k in ("tokens", "positions")}
    after = run(changed, canon)["logits"]
    assert_same_sums(after if full else after[:, -1:], before, decoder_terms(SHAPE, LONGEST))


def test_before_and_after() -> None:
    raw = decoder()
    model = canonical(decoder())
    assert len(raw.graph) == 65
    assert ops(model) == CANONICAL
    assert model.graph.opset_imports == {"": 24}
    assert [v.name for v in model.graph.inputs] == ["tokens", "positions"]
    assert [v.name for v in model.graph.outputs] == ["logits"]
    assert [p.shape for p in by_role(read_ports(model), "logits")] == [("B", "N", 11)]
    assert mask_of(model) == {"kind": "causal"}
    (attention,) = [n for n in model.graph if n.op_type == "Attention"]
    assert len(attention.inputs) == 3
    assert attention.attributes.get_int("is_causal") == 1
    assert attention.attributes.get_float("scale") == pytest.approx(6**-0.5)
    assert [d for d in attention.inputs[1].shape][1] == 2, "KV heads stay grouped"
    same_logits(raw, model, feed())


def test_logits_follow_positions_not_order() -> None:
    raw, model, given = decoder(), canonical(decoder()), feed()
    given["positions"] = given["positions"] * 2 + 1
    same_logits(raw, model, given)


NORMS = {
    "x times x, and Div": NORM.replace("Pow(x, two)", "Mul(x, x)").replace(
        "over = Reciprocal(root)", ""
    ).replace("unit = Mul(x, over)", "unit = Div(x, root)"),
    "one over root": NORM.replace("Reciprocal(root)", "Div(one, root)"),
    "one plus scale": NORM.replace(
        "n = Mul(norm_scale, unit)", "s = Add(norm_scale, one)\nn = Mul(unit, s)"),
    "no scale": NORM.replace("n = Mul(norm_scale, unit)", "n = Identity(unit)"),
    "sum of squares over their count": NORM.replace("square = Pow(x, two)", "").replace(
        "mean = ReduceMean(square, last)",
        "sum = ReduceSumSquare(x, last)\ncount = Constant<value = float {8.0}>()\n"
        "mean = Div(sum, count)"),
}  # fmt: skip


@pytest.mark.parametrize("text", NORMS.values(), ids=NORMS.keys())
def test_root_mean_square_norms(text: str) -> None:
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    assert ops(model) == CANONICAL
    same_logits(raw, model, feed())


def test_layer_norm() -> None:
    text = """
    mean = ReduceMean(x, last)
    centred = Sub(x, mean)
    square = Pow(centred, two)
    variance = ReduceMean(square, last)
    safe = Add(variance, epsilon)
    root = Sqrt(safe)
    unit = Div(centred, root)
    scaled_unit = Mul(unit, norm_scale)
    n = Add(scaled_unit, norm_bias)
    """
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    assert ops(model)["LayerNormalization"] == 1
    assert ops(model)["ReduceMean"] == 0
    same_logits(raw, model, feed())


def test_root_mean_square_of_the_centred_is_layer_norm() -> None:
    text = """
    mean = ReduceMean(x, last)
    centred = Sub(x, mean)
    n = RMSNormalization<axis = -1, epsilon = 0.00001>(centred, norm_scale)
    """
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    assert ops(model)["LayerNormalization"] == 1
    assert ops(model)["ReduceMean"] == ops(model)["RMSNormalization"] == 0
    same_logits(raw, model, feed())


def norm_of(model: ir.Model) -> ir.Node:
    (node,) = [n for n in model.graph if n.op_type == "RMSNormalization"]
    return node


@pytest.mark.parametrize(
    ("text", "epsilon"),
    [("n = SimplifiedLayerNormalization(x, norm_scale)", 1e-5),
     ("none = Sub(x, x)\n    n = SkipSimplifiedLayerNormalization(x, none, norm_scale)", 1e-12)],
    ids=["plain", "skip"],
)  # fmt: skip
def test_fused_norms_without_an_epsilon_have_their_own(
    text: str, epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stream so small that the epsilon decides."""
    from . import raw_decoder

    held = raw_decoder.weights()
    held["embed"] = held["embed"] * np.float32(1e-3)
    monkeypatch.setattr(raw_decoder, "weights", lambda: held)

    def made() -> ir.Model:
        model = decoder(norm=text)
        for node in model.graph:
            if node.op_type.startswith("Skip"):
                node.domain = "com.microsoft"
        model.graph.opset_imports["com.microsoft"] = 1
        return model

    model = canonical(made())
    assert norm_of(model).attributes.get_float("epsilon") == pytest.approx(epsilon)
    same_logits(made(), model, feed())


HALF = "half = Cast<to = 1>(norm_half)\n    "
HALF_NORMS = {
    "scale": NORM.replace("n = Mul(norm_scale, unit)", HALF + "n = Mul(half, unit)"),
    "one plus scale": NORM.replace(
        "n = Mul(norm_scale, unit)", HALF + "s = Add(half, one)\n    n = Mul(unit, s)"),
}  # fmt: skip


@pytest.mark.parametrize("text", HALF_NORMS.values(), ids=HALF_NORMS.keys())
def test_a_scale_stored_in_fp16_is_used_in_fp32(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import raw_decoder

    held = raw_decoder.weights()
    held["norm_half"] = (held["norm_scale"] / 7).astype(np.float16)
    monkeypatch.setattr(raw_decoder, "weights", lambda: held)
    raw, model = decoder(norm=text), canonical(decoder(norm=text))
    scale = norm_of(model).inputs[1]
    assert scale is not None
    assert scale.dtype == ir.DataType.FLOAT
    before, after = run(raw, feed())["logits"], run(model, feed())["logits"]
    np.testing.assert_allclose(after, before, atol=4e-6 * np.abs(before).max())


def test_a_norm_over_tokens_is_refused() -> None:
    with pytest.raises(NotApplicable, match="mixes tokens; only the last axis"):
        canonical(decoder(norm="n = SimplifiedLayerNormalization<axis = 1>(x, norm_scale)"))


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


def test_learned_positions_with_an_offset_counted_in_the_graph() -> None:
    entry = """
    words = Gather(embed, tokens)
    n_tokens = Shape<start = 1, end = 2>(tokens)
    count = Squeeze(n_tokens)
    counted = Range(zero, count, one_step)
    shifted = Add(counted, offset)
    where_at = Gather(learned, shifted)
    x = Add(words, where_at)
    """
    pieces = {"entry": entry, "angles": "", "rotary": "qr = Identity(q)\nkr = Identity(k)"}
    raw = decoder("int64[B,N] tokens", **pieces)
    model = canonical(decoder("int64[B,N] tokens", **pieces))
    assert "Range" not in ops(model)
    assert ops(model)["Gather"] == 2
    same_logits(raw, model, {"tokens": feed()["tokens"]})
    moved = run(model, {**feed(), "positions": feed()["positions"] + 5})["logits"]
    assert np.abs(moved - run(model, feed())["logits"]).max() > 1e-2


def test_a_cache_and_its_mask_are_cut_off() -> None:
    inputs = (
        "int64[B,N] ids, int64[B,N] position_ids, float[B,2,P,6] past_k, float[B,2,P,6] past_v, "
        "float[B,1,N,T] attention_mask"
    )
    outputs = "float[B,N,11] scores_out, float[B,2,T,6] present_k, float[B,2,T,6] present_v"
    repeat = "present_k = Concat<axis = -2>(past_k, kr)\npresent_v = Concat<axis = -2>(past_v, v)"
    repeat += REPEAT.replace("(kr,", "(present_k,").replace("(v,", "(present_v,").replace(
        "length = Shape<start = 1, end = 2>(tokens)",
        "length = Shape<start = 2, end = 3>(present_k)")  # fmt: skip
    text = {
        "entry": "tokens = Identity(ids)\npositions = Identity(position_ids)\n"
                 "x = Gather(embed, tokens)",
        "repeat": repeat, "mask": "bias = Identity(attention_mask)",
        "head": HEAD.replace("logits", "scores_out"),
    }  # fmt: skip
    raw, model = decoder(inputs, outputs, **text), canonical(decoder(inputs, outputs, **text))
    assert ops(model) == CANONICAL
    given = feed()
    length = given["tokens"].shape[1]
    lower = np.tril(np.ones((length, length), bool))
    full = {
        "ids": given["tokens"], "position_ids": given["positions"],
        "past_k": np.zeros((2, 2, 0, 6), np.float32), "past_v": np.zeros((2, 2, 0, 6), np.float32),
        "attention_mask": np.broadcast_to(
            np.where(lower, 0, -3e38).astype(np.float32), (2, 1, length, length)),
    }  # fmt: skip
    before, after = run(raw, full)["scores_out"], run(model, given)["logits"]
    assert_same_sums(after, before, decoder_terms(SHAPE, length))
    neutral = Canonicalize().neutral(full, model)
    assert sorted(neutral) == ["positions", "tokens"]
    np.testing.assert_array_equal(neutral["tokens"], given["tokens"])


def test_logits_at_every_position() -> None:
    head = """
    end = Slice(y, last, everything, one_row)
    head = Transpose<perm = [1, 0]>(embed)
    logits = MatMul(end, head)
    """
    head = head.replace("everything", "row_end")
    from . import raw_decoder

    held = raw_decoder.weights() | {"row_end": np.asarray([2**62], np.int64)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_decoder, "weights", lambda: held)
        raw, model = decoder(head=head), canonical(decoder(head=head))
    assert ops(model) == CANONICAL
    same_logits(raw, model, feed(), full=False)


def test_a_tied_head_gets_its_own_name_for_the_same_tensor() -> None:
    graph = canonical(decoder()).graph
    own, shared = graph.initializers["lm_head.weight"], graph.initializers["embed"]
    assert own.const_value is shared.const_value
    assert [n.op_type for n in own.consumers()] == ["Transpose"]
    assert [n.op_type for n in shared.consumers()] == ["Gather"]


def test_weights_are_not_read() -> None:
    model = decoder()

    def never() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    for name in ("w_q", "w_k", "w_v", "w_o", "embed", "norm_scale"):
        value = model.graph.initializers[name]
        held = value.const_value
        assert held is not None
        value.const_value = ir.LazyTensor(never, dtype=held.dtype, shape=ir.Shape(held.shape))
    assert ops(canonical(model)) == CANONICAL


@pytest.mark.parametrize(
    "spec", [TinyDecoder(), TinyDecoder(window=3, layers=3), TinyDecoder(alibi=True)],
    ids=["causal", "window", "alibi"],
)  # fmt: skip
def test_canonical_graphs_stay_what_they_are(spec: TinyDecoder) -> None:
    before, after = spec.build(), spec.build()
    Canonicalize().apply(after)
    given = {k: v % 50 for k, v in feed().items()}
    seen = given["tokens"].shape[1]
    logits = [run(m, given)["logits"] for m in (after, before)]
    assert_same_sums(*logits, decoder_terms(spec, seen))
    kept = ("Attention", "RotaryEmbedding", "RMSNormalization", "MatMul")
    assert [ops(after)[op] for op in kept] == [ops(before)[op] for op in kept]
    says = [[n.metadata_props[MASK_KEY] for n in m.graph if n.op_type == "Attention"]
            for m in (before, after)]  # fmt: skip
    assert [json.loads(s) for s in says[0]] == [json.loads(s) for s in says[1]]


REFUSALS = {
    "the mask hides nothing": {"mask": MASK.replace(
        "Where(see, nothing, lowest)", "Cast<to = 1>(see)")},
    "not a rotary embedding": {
        "rotary": turn("q").replace("Neg(q_b)", "Identity(q_b)") + turn("k")},
    "other positions than their own": {"angles": ANGLES.replace("at = Cast<to = 1>(at0)", """
    at1 = Cast<to = 1>(at0)
    longest = ReduceMax<keepdims = 1>(at1)
    shorter = Add(longest, one)
    at = Div(at1, shorter)""")},
    "mixed with each other": {"head": HEAD.replace("MatMul(y, head)", "MatMul(cum, head)").replace(
        "head = T", "cum = CumSum(y, one_step)\n    head = T")},
    "scaled by more than one number": {"attend": ATTEND.replace(
        "Mul(scores, scale)", "Mul(scores, slopes)")},
}  # fmt: skip


@pytest.mark.parametrize(("reason", "pieces"), REFUSALS.items(), ids=REFUSALS.keys())
def test_refuses_what_it_does_not_understand(reason: str, pieces: dict[str, str]) -> None:
    with pytest.raises(NotApplicable, match=reason):
        canonical(decoder(**pieces))


def test_refuses_inputs_it_does_not_understand() -> None:
    with pytest.raises(NotApplicable, match=r"input images \[B, 8\] enters among the token"):
        canonical(decoder(
            INPUTS + ", float[B,8] images",
            entry="e = Gather(embed, tokens)\ni = Unsqueeze(images, one_row)\nx = Add(e, i)",
        ))  # fmt: skip


def test_refuses_a_graph_without_attention() -> None:
    pieces = dict.fromkeys(("heads", "angles", "rotary", "repeat", "mask"), "")
    with pytest.raises(NotApplicable, match="no attention found"):
        canonical(decoder(**pieces, attend="y = Add(x, n)"))


def test_refuses_an_opset_that_is_too_old() -> None:
    model = decoder()
    model.graph.opset_imports[""] = 11
    with pytest.raises(NotApplicable, match="opset 11 is too old"):
        canonical(model)


@pytest.mark.parametrize("where", ["graph", "body"])
def test_an_old_opset_is_raised_in_bodies_too(where: str) -> None:
    """Axes of a mean, an attribute before opset 18, are an input after."""
    mean = "m = ReduceMean<axes = [-1]>(x)"
    branch = mean.replace("m =", "r =")
    branches = f"then_branch = a () => (r) {{ {branch} }}, else_branch = b () => (r) {{ {branch} }}"
    body = f"m = If (flag) <{branches}>"
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[B,4] x, bool flag) => (float[B,1] out) '
        f"{{ {mean if where == 'graph' else body} out = Neg(m) }}"
    )
    open_graph(model)
    means = [n for n in model.graph.all_nodes() if n.op_type == "ReduceMean"]
    assert len(means) == (1 if where == "graph" else 2)
    for node in means:
        assert "axes" not in node.attributes
        axes = node.inputs[1]
        assert axes is not None
        assert axes.const_value is not None
        assert axes.const_value.numpy().tolist() == [-1]
