"""Canonicalize on a one-block decoder: every spelling becomes the same few nodes with the same
logits; what is not understood is refused by name."""

from __future__ import annotations

import json

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
from tests.passes.canonical.canonical_host import CANONICAL, canonical, mask_of, ops, same_logits
from tests.passes.canonical.raw_decoder import (
    ANGLES,
    ATTEND,
    HEAD,
    INPUTS,
    MASK,
    REPEAT,
    SHAPE,
    decoder,
    feed,
    turn,
)  # fmt: skip
from tests.rounding import assert_same_sums, decoder_terms


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


SPLIT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[B,N] x, int64[1] n) => (float[B,K] a, float[B,M] b) {
    two = Constant<value = int64[1] {2}>()
    sizes = Concat<axis = 0>(two, n, two)
    all = SplitToSequence<axis = 1>(x, sizes)
    first = Constant<value_int = 0>()
    second = Constant<value_int = 1>()
    a = SequenceAt(all, first)
    b = SequenceAt(all, second)
}
"""  # noqa: E501


def test_pieces_of_a_sequence_are_slices() -> None:
    model = ir.from_onnx_text(SPLIT)
    rows = np.arange(14, dtype=np.float32).reshape(2, 7)
    fed = {"x": rows, "n": np.array([3])}
    expected = run(model, fed)
    open_graph(model)
    assert {n.op_type for n in model.graph} == {"Concat", "CumSum", "Gather", "Slice"}
    made = run(model, fed)
    for name, columns in (("a", rows[:, :2]), ("b", rows[:, 2:5])):
        np.testing.assert_array_equal(made[name], columns)
        np.testing.assert_array_equal(expected[name], columns)


@pytest.mark.parametrize("change", [("value_int = 1", "value_int = -1"), ("(x, sizes)", "(x, n)")])
def test_sequences_of_other_pieces_stay(change: tuple[str, str]) -> None:
    model = ir.from_onnx_text(SPLIT.replace(*change).replace("int64[1] n", "int64 n"))
    open_graph(model)
    assert "SplitToSequence" in {n.op_type for n in model.graph}


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
