"""Masks and values per position: served as the functions they are, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import graftline
from graftline.build.tensorrt.builder import BuildOptions, build
from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Feed, decoder_feed, run
from graftline.facts import decoder_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.masks import MASK_KEY
from graftline.passes.grafts.tree_mask import causal_mask
from graftline.ports import read_ports
from graftline.tree import Tree

from .mask_hosts import AXES, FAST, MASKS, SEEN, SPELLINGS, feed, host
from .raw_decoder import ANGLES, ATTEND, turn

FRONT = "canonicalize{positions=512} | anchors | kv-cache"
MIX = ["chunked", "window and sinks", "bucketed", "chunked", "causal", "window"]
LENGTH = 92
"""Beyond 2c + 1 for every constant of the hosts, 40 being the largest."""


def grafted(model: ir.Model, text: str) -> ir.Model:
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def kinds(model: ir.Model) -> list[str]:
    notes = [n.metadata_props.get(MASK_KEY) for n in model.graph if n.op_type == "Attention"]
    return [json.loads(n)["kind"] for n in notes if n]


def empty(model: ir.Model, batch: int, slots: int) -> Feed:
    """Caches full of numbers that nobody may see."""
    sizes = {"B": batch, "S": slots}
    return {
        p.name: np.full([sizes.get(str(d), d) for d in p.shape], 1e3, np.float32)
        for p in read_ports(model) if p.role in ("cache.key", "cache.value") and p.direction == "in"
    }  # fmt: skip


def stepped(model: ir.Model, given: Feed, cuts: list[int], slots: int = 128) -> np.ndarray:
    """Logits of `given`, fed in chunks through the caches."""
    held, at, out = empty(model, len(given["tokens"]), slots), 0, list[np.ndarray]()
    for rows in cuts:
        fed = {k: v[:, at : at + rows] for k, v in given.items()} | held
        fed["write_index"] = np.full(len(given["tokens"]), at)
        if any(p.name == "mask" for p in read_ports(model)):
            fed["mask"] = causal_mask(fed["write_index"], rows, slots)
        got = run(model, fed)
        out.append(got["logits"])
        held = {p.mirror: got[p.name] for p in read_ports(model) if p.mirror is not None}
        at += rows
    return np.concatenate(out, axis=1)


def close(got: np.ndarray, want: np.ndarray) -> None:
    """Equal but for sums of a few hundred fp32 products in another order."""
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("layers", [*([name] for name in MASKS), MIX], ids="+".join)
def test_masks_are_served_as_they_are(layers: list[str]) -> None:
    """One pass and chunks through the cache give what the raw graph gives, longer than 2c + 1."""
    given = feed(LENGTH, 2)
    want = run(host(layers), given)["logits"]
    model = grafted(host(layers), "canonicalize{positions=512}")
    expected = [name.partition(" from")[0] if name in FAST else "formula" for name in layers]
    assert kinds(model) == expected
    close(run(model, given)["logits"], want)
    grafted(model, "anchors | kv-cache")
    close(stepped(model, given, [37, 30, 1, 24]), want)
    grafted(model, "tree-mask")
    close(stepped(model, given, [50, 42]), want)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    """However a function of positions is written, in Trilu, buffers, sums or by position."""
    given = feed(LENGTH)
    want = run(host([SPELLINGS[name]]), given)["logits"]
    model = grafted(host([SPELLINGS[name]]), "canonicalize{positions=512}")
    assert kinds(model) == [name.split()[0].rstrip(":")]
    grafted(model, "anchors | kv-cache")
    close(stepped(model, given, [45, 47]), want)


@pytest.mark.parametrize("name", ["segments by a table", "a bias for every pair"])
def test_a_table_bounds_the_positions(name: str) -> None:
    model = grafted(host([SPELLINGS[f"formula: {name}"]]), FRONT)
    assert decoder_facts(model).positions == 96


@pytest.mark.parametrize("name", ["chunked", "window and sinks", "clipped alibi", "bucketed"])
def test_a_tree_sees_by_depth(name: str) -> None:
    """Every path of a tree behind 46 committed rows, scored at once, is the path as a chain."""
    past, model = 46, grafted(host([name]), f"{FRONT} | tree-mask")
    given = feed(past)
    parents = np.asarray([-1, 0, 0, 1, 1, 3, 5])
    tree = Tree(np.asarray([1, 2, 3, 4, 5, 6, 7]), parents)
    first = given | empty(model, 1, 64) | {"write_index": np.zeros(1, np.int64)}
    first["mask"] = causal_mask(np.zeros(1, np.int64), past, 64)
    done = run(model, first)
    held = {p.mirror: done[p.name] for p in read_ports(model) if p.mirror is not None}
    mask = np.zeros((1, 1, 7, 64), np.bool_)
    mask[..., :past] = True
    mask[0, 0, :, past : past + 7] = tree.mask
    scored = run(model, held | {
        "tokens": tree.tokens[None], "positions": past + tree.depth[None],
        "write_index": np.asarray([past]), "mask": mask,
    })["logits"][0]  # fmt: skip
    raw = host([name])
    for leaf in (2, 4, 6):
        path = list(tree.path_to(leaf))
        ids = np.concatenate([given["tokens"][0], tree.tokens[path]])[None]
        chain = {"tokens": ids, "positions": np.arange(ids.size)[None]}
        close(scored[path], run(raw, chain)["logits"][0, past:])


@pytest.mark.parametrize("layers", [["chunked", "bucketed"], MIX[:3]], ids="+".join)
def test_through_optimize_and_generate(layers: list[str], tmp_path: Path) -> None:
    """Greedy text of the bundle, plain and drafted, is that of ONNX Runtime on the raw file."""
    raw = host(layers, size=16)
    raw.metadata_props.clear()
    ir.save(raw, tmp_path / "raw.onnx")
    bundle = graftline.optimize(tmp_path / "raw.onnx", tmp_path / "out")
    engine = graftline.load(bundle.path, capacity=128)
    session = ort.InferenceSession(tmp_path / "raw.onnx")
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 11, 20)]
    want = list(ids)
    for _ in range(LENGTH - 20):
        fed = {"tokens": np.asarray([want]), "positions": np.arange(len(want))[None]}
        want.append(int(session.run(None, fed)[0][0, -1].argmax()))
    for recipe in ("plain", "token-recycling"):
        made = engine.generate(
            np.asarray(ids), max_new_tokens=LENGTH - 20, ignore_eos=True, recipe=recipe
        )
        assert list(made.tokens) == want[20:]


LOWERINGS = (
    "kv-cache | tree-mask | lower-ort",
    "kv-cache | lower-ort{dtype=fp16}",
    "kv-cache | tree-mask | lower-tensorrt",
    "kv-cache | tree-mask | cut-depth{blocks=2} | lower-ort",
)


@pytest.mark.parametrize("text", LOWERINGS)
def test_every_lowering_takes_formulas(text: str) -> None:
    """The laws, which raise: the numeric ones with a feed, `masks` without."""
    model = grafted(host(MIX[:3], size=16), "canonicalize{positions=512}")
    pipeline, other = Pipeline.parse(f"anchors | {text}", GRAFTS), model.clone()
    reports = pipeline.run(model, decoder_feed(11))
    laws = [law.law for report in reports for law in report.laws]
    assert laws.count("neutral") == len(reports)
    laws = [law.law for report in pipeline.run(other) for law in report.laws]
    assert laws.count("masks") == text.count("kv-cache") + text.count("tree-mask")


def test_an_engine_is_built_of_formulas(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    text = f"{FRONT} | tree-mask | lower-tensorrt{{capacity=64}}"
    model = grafted(host(MIX[:3], size=16), text)
    ir.save(model, tmp_path / "graph.onnx")
    made = build(
        tmp_path / "graph.onnx", read_ports(model), "trt-rtx:sm89", tmp_path / "step.engine",
        BuildOptions(rows=(8,), chunk=16),
    )  # fmt: skip
    assert made.size > 100_000


def test_a_canonical_formula_is_read_again() -> None:
    """A graph that is canonical already keeps its masks."""
    given = feed(LENGTH)
    model = grafted(host(MIX[:3]), "canonicalize{positions=512}")
    want = run(model, given)["logits"]
    grafted(model, "canonicalize{positions=512}")
    assert kinds(model) == ["formula"] * 3
    close(run(model, given)["logits"], want)


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


def attend(text: str) -> str:
    return ATTEND.replace("heads = MatMul(weights, vv)", f"{text}\n    heads = MatMul(again, vv)")


AGAIN = """
    o_size = Squeeze(length)
    o_order = Range(zero, o_size, one_step)
    o_key = Unsqueeze(o_order, axis_0)
    o_query = Unsqueeze(o_order, one_row)
    o_ago = Sub(o_query, o_key)
    o_near = Less(o_ago, n_40)
    again = Where(o_near, weights, nothing)"""
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
