"""Files as users have them: the same logits as ONNX Runtime gives on them, or one line that says
what they are; and what canonicalisation assumed of their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graftline
from graftline.build.check import check
from graftline.errors import BackendError, NotApplicable, RequestError
from graftline.passes.canonical.canonicalize import Canonicalize
from graftline.ports import Port, read_assumptions, told
from graftline.raw_ports import raw_feed, raw_logits, read_raw
from tests.passes.canonical.raw_decoder import ANGLES, ATTEND, HEAD, INPUTS, VOCABULARY, decoder
from tests.passes.canonical.user_files import FILES, cached, group_query, last_rows

TOLERANCE = {"float32": 2e-6, "float16": 4e-3}
"""Relative to the largest logit: sums of 24 products, in either type."""


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    outputs: list[Any] = session.run(None, feed)
    return dict(zip([o.name for o in session.get_outputs()], outputs, strict=True))


def canonical(model: ir.Model, **options: Any) -> ir.Model:
    graft = Canonicalize(positions=32, **options)
    graft.requires(model)
    graft.apply(model)
    return model


def same(raw: ir.Model, model: ir.Model, batch: int, rows: int) -> None:
    """The user's own file in ONNX Runtime, by roles, against the canonical graph."""
    ports = read_raw(model.metadata_props)
    tokens = np.random.default_rng(rows).integers(0, VOCABULARY, (batch, rows))
    feed = raw_feed(ports, tokens)
    expected = raw_logits(ports, run(raw, feed)).astype(np.float64)
    got = run(model, Canonicalize().neutral(feed, model))["logits"]
    gap = np.abs(got[:, -expected.shape[1] :] - expected).max() / np.abs(expected).max()
    assert got.shape == (batch, rows, VOCABULARY)
    assert gap < TOLERANCE[got.dtype.name]


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_the_file(name: str) -> None:
    raw, model = FILES[name](), canonical(FILES[name]())
    assert {n.domain for n in model.graph} == {""}
    same(raw, model, 2, 7)
    same(raw, model, 1, 12)


def test_every_replaced_input_is_stated() -> None:
    model = canonical(decoder(size=16, **group_query()))
    stated = {a.input: (a.role, a.value) for a in read_assumptions(model)}
    assert stated == {
        "attention_mask": ("padding mask", "all ones: no token is padding"),
        "past_a": ("cache", "empty"), "past_b": ("cache", "empty"),
    }  # fmt: skip
    lines = told(read_assumptions(model))
    assert lines[0].startswith("input 'attention_mask' (padding mask) is taken as all ones")
    assert lines[1].startswith("input 'past_a' and 1 like it (cache) are taken as empty")


def test_the_feed_has_the_file_s_own_names_types_and_shapes() -> None:
    model = canonical(decoder(**cached()))
    feed = raw_feed(read_raw(model.metadata_props), np.asarray([[3, 4, 5]]))
    kinds = {name: (value.dtype.name, value.shape) for name, value in feed.items()}
    assert kinds == {
        "ids": ("int32", (1, 3)), "places": ("int32", (1, 3)),
        "my_mask": ("float32", (1, 1, 3, 3)), "a": ("float32", (1, 2, 0, 6)),
        "b": ("float32", (1, 2, 0, 6)),
    }  # fmt: skip
    hidden = np.finfo(np.float32).min
    np.testing.assert_array_equal(feed["my_mask"][0, 0, 1], np.asarray([0, 0, hidden], np.float32))


def test_a_number_is_fed_as_a_number() -> None:
    feed = raw_feed([Port("keep", "all_rows", "in", "int64", ())], np.zeros((1, 2), np.int64))
    assert feed["keep"].shape == ()


def test_an_output_scaled_by_a_stored_half_is_not_the_logits() -> None:
    model = decoder(
        outputs="float[B,N,8] states, float[B,N,11] logits",
        head="stored = Cast<to = 10>(norm_scale)\nscales = Cast<to = 1>(stored)\n"
        f"states = Mul(scales, y)\n{HEAD}",
    )
    assert [p.name for p in read_raw(canonical(model).metadata_props)][-1] == "logits"


def test_a_graph_without_roles_is_not_fed() -> None:
    with pytest.raises(BackendError, match="does not say what its inputs are"):
        read_raw({})
    with pytest.raises(BackendError, match="input 'x' has the unknown role 'colour'"):
        raw_feed([Port("x", "colour", "in", "int64", ("B",))], np.zeros((1, 2), np.int64))


# what a file is instead of a decoder

POOLED = "z = Gather<axis = 1>(y, last_one)\n"
INSTEAD = {
    r"a classifier of texts with 2 labels": {
        "outputs": "float[B,2] answer", "head": POOLED + "answer = MatMul(z, w_two)"},
    r"a token classifier with 2 labels": {
        "outputs": "float[B,N,2] answer", "head": "answer = MatMul(y, w_two)"},
    r"this graph has no head: its output states \[B, N, 8\] is hidden states": {
        "outputs": "float[B,N,8] states", "head": "states = Mul(y, norm_scale)"},
    r"input kinds \[B, N\] chooses among 2 token types, as encoders have": {
        "inputs": INPUTS + ", int64[B,N] kinds",
        "entry": "e = Gather(embed, tokens)\nt = Gather(types, kinds)\nx = Add(e, t)"},
    r"input encoded \[B, S, 8\] holds states of another network": {
        "inputs": INPUTS + ", float[B,S,8] encoded",
        "head": "ck = MatMul(encoded, w_k)\nct = Transpose<perm = [0, 2, 1]>(ck)\n"
                "cq = MatMul(y, w_k)\ncs = MatMul(cq, ct)\ncp = Softmax<axis = -1>(cs)\n"
                "co = MatMul(cp, encoded)\n" + HEAD.replace("(y,", "(co,")},
    r"no input of token ids: input embeds \[B, N, 8\] takes embeddings": {
        "inputs": "int64[B,N] positions, float[B,N,8] embeds, int64[B,N] tokens",
        "entry": "x = Identity(embeds)"},
    r"input image_mask chooses between activations": {
        "inputs": INPUTS + ", bool[B,N] image_mask",
        "entry": "e = Gather(embed, tokens)\nwhere = Unsqueeze(image_mask, last)\n"
                 "x = Where(where, norm_bias, e)"},
    r"several outputs could be the logits: one \[B, N, 11\], two \[B, N, 11\]": {
        "outputs": "float[B,N,11] one, float[B,N,11] two",
        "head": HEAD.replace("logits", "one") + "two = MatMul(x, head)"},
    r"several inputs could be the token ids: tokens \[B, N\], others \[B, N\]": {
        "inputs": INPUTS + ", int64[B,N] others",
        "entry": "e = Gather(embed, tokens)\nt = Gather(embed, others)\nx = Add(e, t)"},
    r"the shape \[B, 8\]; export token ids as \[batch, length\] with a dynamic length": {
        "inputs": "int64[B,8] tokens, int64[B,8] positions"},
    r"values of token ids are counted over the text \(they are compared at Equal pads\)": {
        "inputs": "int64[B,N] tokens",
        "angles": "pads = Equal(tokens, one_step)\nreal = Not(pads)\nreal_i = Cast<to = 7>(real)\n"
                  "positions = CumSum(real_i, one_step)\n" + ANGLES},
    r"scaled by a number that follows the length of the text, counted from input real": {
        "inputs": INPUTS + ", int64[B,N] real",
        "entry": "e = Gather(embed, tokens)\nreal_f = Cast<to = 1>(real)\n"
                 "count = ReduceMax<keepdims = 0>(total_f)\ntotal_f = ReduceSum(real_f, last)\n"
                 "x = Mul(e, count)"},
    r"DynamicQuantizeLinear scales activations by the largest value among all rows": {
        "head": "yq, ys, yz = DynamicQuantizeLinear(y)\nyd = DequantizeLinear(yq, ys, yz)\n"
                + HEAD.replace("(y,", "(yd,")},
    r"SparseAttention of ONNX Runtime is not read": {
        "head": "z = com.microsoft.SparseAttention(y)\n" + HEAD.replace("(y,", "(z,")},
    r"input count is a number that is used in no known way": {
        "inputs": INPUTS + ", int64 count",
        "entry": "e = Gather(embed, tokens)\nf = Cast<to = 1>(count)\nx = Mul(e, f)"},
}  # fmt: skip


@pytest.mark.parametrize(("reason", "pieces"), INSTEAD.items(), ids=INSTEAD.keys())
def test_what_is_no_decoder_is_named(reason: str, pieces: dict[str, str]) -> None:
    with pytest.raises(NotApplicable, match=reason) as refusal:
        canonical(decoder(**pieces))
    assert "\n" not in str(refusal.value)


def test_attention_sinks_are_refused() -> None:
    with pytest.raises(NotApplicable, match="GroupQueryAttention has attention sinks"):
        canonical(decoder(size=16, **group_query(", smooth_softmax = 1")))


def test_lengths_that_are_not_those_of_a_whole_text_are_refused() -> None:
    pieces = group_query()
    pieces["angles"] = pieces["angles"].replace("Sub(kept, row_1)", "Sub(kept, row_0)")
    with pytest.raises(NotApplicable, match="takes 5 as the last position of 5 tokens"):
        canonical(decoder(size=16, **pieces))


# masks over pairs of tokens

OPEN = {"inputs": INPUTS + ", float[B,1,N,N] my_mask", "mask": "bias = Identity(my_mask)"}
BOTH = ATTEND.replace("weights = Softmax<axis = -1>(biased)", (
    "again = Add(biased, my_mask)\n    weights = Softmax<axis = -1>(again)"))


def test_a_mask_input_without_evidence_is_refused_and_the_user_can_say_so() -> None:
    with pytest.raises(NotApplicable, match=r'--passes "canonicalize\{causal_mask=true\}"'):
        canonical(decoder(**OPEN))
    model = canonical(decoder(**OPEN), causal_mask=True)
    same(decoder(**OPEN), model, 2, 7)
    assert read_assumptions(model)[0].value.startswith("causal")


def test_a_mask_input_of_a_host_that_hides_the_future_itself_is_causal() -> None:
    pieces = {"inputs": OPEN["inputs"], "attend": BOTH}
    model = canonical(decoder(**pieces))
    same(decoder(**pieces), model, 2, 7)


def test_a_mask_input_that_enters_other_places_is_refused() -> None:
    entry = (
        "e = Gather(embed, tokens)\nm = ReduceSum<keepdims = 0>(my_mask, axes_pair)\n"
        "u = Unsqueeze(m, last)\nx = Add(e, u)"
    )
    with pytest.raises(NotApplicable, match="is used outside attention scores"):
        canonical(decoder(**OPEN, entry=entry), causal_mask=True)


# padding masks

WHERE = "where = Unsqueeze(real, last)\n"


def test_a_padding_mask_that_blanks_embeddings_is_neutral() -> None:
    pieces = {
        "inputs": INPUTS + ", bool[B,N] real",
        "entry": f"e = Gather(embed, tokens)\n{WHERE}x = Where(where, e, nothing)",
    }
    model = canonical(decoder(**pieces))
    assert not [n for n in model.graph if n.op_type == "Where"]
    same(decoder(**pieces), model, 2, 7)


@pytest.mark.parametrize("times", ["h = Identity(g)", "h = Mul(g, two)"])
def test_a_padding_mask_that_is_multiplied_in_counts_as_ones(times: str) -> None:
    pieces = {
        "inputs": INPUTS + ", int64[B,N] real", "attend": _padded(ATTEND),
        "entry": "e = Gather(embed, tokens)\nf = Cast<to = 1>(real)\ng = Unsqueeze(f, last)\n"
                 f"{times}\nx = Mul(e, h)",
    }  # fmt: skip
    same(decoder(**pieces), canonical(decoder(**pieces)), 2, 7)


def _padded(attend: str) -> str:
    """Attention that also hides the keys of padding."""
    return attend.replace("biased = Add(scaled, bias)", (
        "seen = Equal(real, zero)\n    gone = Unsqueeze(seen, axes_mid)\n"
        "    open = Add(scaled, bias)\n    biased = Where(gone, lowest, open)"))  # fmt: skip


def test_the_last_rows_alone_become_all_rows() -> None:
    (stated,) = read_assumptions(canonical(decoder(**last_rows())))
    assert (stated.input, stated.value) == ("keep", "0: logits at every position")


@pytest.mark.parametrize("name", ["group query", "merged"])
def test_a_bundle_checks_itself_against_the_user_s_own_file(name: str, tmp_path: Path) -> None:
    """What the export's inputs are travels with it, so that `check` can run it by itself."""
    ir.save(FILES[name](), tmp_path / "user.onnx")
    said: list[str] = []
    bundle = graftline.optimize(tmp_path / "user.onnx", tmp_path / "out", watch=said.append)
    assert [line for line in said if line.startswith("assumed: input")]
    assert {a.role for a in bundle.manifest.assumptions} & {"cache", "flag"}
    assert {p.role for p in bundle.manifest.stages["export"].ports} >= {"tokens", "logits"}
    assert check(bundle.path).holds
    assert bundle.manifest.facts.layers == 1


def test_angles_of_long_texts_are_refused_and_the_advice_serves_short_ones(tmp_path: Path) -> None:
    """As longrope: beyond twenty positions every angle is another."""
    angles = ANGLES.replace("at = Cast<to = 1>(at0)", """
    at1 = Cast<to = 1>(at0)
    longest = ReduceMax<keepdims = 0>(at1)
    limit = Constant<value = float {19.0}>()
    long = Greater(longest, limit)
    half = Mul(at1, scale)
    at = Where(long, half, at1)""")
    ir.save(decoder(angles=angles), tmp_path / "m.onnx")
    with pytest.raises(NotApplicable, match=r"of more than 20 positions; .*\{cap=20\}"):
        graftline.optimize(tmp_path / "m.onnx", tmp_path / "out", passes="canonicalize{cap=64}")
    bundle = graftline.optimize(
        tmp_path / "m.onnx", tmp_path / "out", passes="canonicalize{cap=20}"
    )
    assert bundle.manifest.facts.positions == 20
    same(decoder(angles=angles), canonical(decoder(angles=angles), cap=20), 1, 20)
    engine = graftline.load(bundle.path)
    with pytest.raises(RequestError, match="capacity is 20, the most that this bundle allows"):
        engine.generate([1, 2, 3], max_new_tokens=18, ignore_eos=True)
    assert len(engine.generate([1, 2, 3], max_new_tokens=17, ignore_eos=True).tokens) == 17
