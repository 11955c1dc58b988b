"""lower-tensorrt: the host's outputs in three precisions, what it writes, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed, Prepared, decoder_feed, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws import infer_shapes
from graftline.passes.tensorrt_attention import AttentionLowering
from graftline.ports import Facts, Port, read_facts, read_ports, write_facts, write_ports
from graftline.recipe import recipes

ALL = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+norm} | "
    "reduce-logits{topk=4,entropy=true} | pack-projections"
)
HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=3, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "head-of-8": TinyDecoder(head_size=8),
}
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ir.DataType.BFLOAT16.numpy()}


def host(spec: TinyDecoder = HOSTS["grouped"], softcap: float = 0.0) -> ir.Model:
    model = spec.build()
    for node in model.graph:
        if node.op_type == "Attention" and softcap:
            node.attributes["softcap"] = ir.AttrFloat32("softcap", softcap)
    infer_shapes(model)
    return model


def lowered(text: str, dtype: str, model: ir.Model, feed: Feed | None = None) -> str:
    """Lower in place; what the neutral law found, where there is a feed."""
    text = f"{text} | lower-tensorrt{{dtype={dtype},capacity=32}}"
    laws = Pipeline.parse(text, GRAFTS).run(model, feed)[-1].laws
    return next((law.text for law in laws if law.law == "neutral"), "")


def listing(model: ir.Model) -> list[str]:
    """One line per node: what it makes, of what."""
    rows: list[str] = []
    for node in model.graph:
        out = node.outputs[0]
        given = ", ".join(v.name or "" for v in node.inputs if v is not None)
        rows.append(f"{out.dtype.name if out.dtype else '?'} {node.op_type}({given})")
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS.keys())
def test_the_lowered_graph_computes_the_host(spec: TinyDecoder, dtype: str) -> None:
    text = ALL if dtype != "bf16" else ALL.replace("tree-mask | ", "")
    found = lowered(text, dtype, host(spec), decoder_feed(61))
    assert "outputs are the host's" in found


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_soft_cap_is_written_in_plain_ops(dtype: str) -> None:
    model = host(softcap=2.0)
    assert "outputs are the host's" in lowered(ALL, dtype, model, decoder_feed(61))
    counts = Counter(n.op_type for n in model.graph)
    assert (counts["Attention"], counts["Tanh"], counts["Softmax"]) == (0, 2, 2)


@pytest.mark.parametrize("passes", sorted({r.passes for r in recipes()}))
def test_every_recipe_lowers(passes: str) -> None:
    found = lowered(f"anchors | {passes} | pack-projections", "fp16", host(), decoder_feed(61))
    assert "outputs are the host's" in found


BEFORE = """
<ir_version: 11, opset_import: ["" : 24]>
small (int64[B,N] tokens, int64[B] write_index, float[B,1,S,16] cache, bool[B,1,N,S] mask,
  float[9,16] table, float[16] scale, int64[1] one)
  => (float[B,1,N,16] y, float[B,1,S,16] written)
{
  rows = Gather (table, tokens)
  normed = RMSNormalization <axis = -1> (rows, scale)
  head = Unsqueeze (normed, one)
  written = TensorScatter <axis = 2> (cache, head, write_index)
  y = Attention <scale = 0.5> (head, written, written, mask)
}
"""


def small() -> ir.Model:
    model, rng = ir.from_onnx_text(BEFORE), np.random.default_rng(0)
    numbers = {
        "table": rng.normal(size=(9, 16)).astype(np.float32),
        "scale": np.ones(16, np.float32),
        "one": np.ones(1, np.int64),
    }
    for value in [v for v in model.graph.inputs if v.name in numbers]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(numbers[value.name or ""], name=value.name)
        model.graph.register_initializer(value)
    shape = ("B", 1, "S", 16)
    ports = [
        Port("tokens", "tokens", "in", "int64", ("B", "N")),
        Port("write_index", "write_index", "in", "int64", ("B",)),
        Port("cache", "cache.key", "in", "float32", shape, 0),
        Port("mask", "mask", "in", "bool", ("B", 1, "N", "S")),
        Port("y", "hidden", "out", "float32", ("B", 1, "N", 16)),
        Port("written", "cache.key", "out", "float32", shape, 0, mirror="cache"),
    ]
    write_ports(model, ports)
    write_facts(model, Facts("decoder", 9, 16, 1, 1, 1, 16, 64))
    infer_shapes(model)
    return model


def test_before_and_after() -> None:
    model = small()
    assert listing(model) == [
        "FLOAT Gather(table, tokens)",
        "FLOAT RMSNormalization(rows, scale)",
        "FLOAT Unsqueeze(normed, one)",
        "FLOAT TensorScatter(cache, head, write_index)",
        "FLOAT Attention(head, written, written, mask)",
    ]
    Pipeline.parse("lower-tensorrt{capacity=64}", GRAFTS).run(model)
    names = {n.op_type: n.outputs[0].name for n in model.graph}
    assert listing(model) == [
        "FLOAT16 Gather(table, tokens)",
        "FLOAT16 RMSNormalization(rows, scale)",
        "FLOAT16 Unsqueeze(normed, one)",
        "FLOAT16 TensorScatter(cache, head, write_index)",
        "FLOAT16 Mul(head, attention.scale.0.5)",
        f"FLOAT16 Attention({names['Mul']}, written, written, mask)",
        "FLOAT Cast(y.low)",
    ]
    assert [(p.name, p.dtype, p.shape) for p in read_ports(model)] == [
        ("tokens", "int64", ("B", "N")),
        ("write_index", "int64", ("B",)),
        ("cache", "float16", ("B", 1, 64, 16)),
        ("mask", "bool", ("B", 1, "N", 64)),
        ("y", "float32", ("B", 1, "N", 16)),
        ("written", "float16", ("B", 1, 64, 16)),
    ]
    assert read_facts(model).dtype == "float16"


@pytest.mark.parametrize("dtype", DTYPES)
def test_caches_and_weights_take_the_precision_and_the_rest_stays(dtype: str) -> None:
    model = host()
    lowered(ALL, dtype, model)
    for port in read_ports(model):
        cache = port.role in ("cache.key", "cache.value")
        if cache or port.dtype != "int64":
            wanted = DTYPES[dtype] if cache else {"mask": np.bool_}.get(port.role, np.float32)
            assert np.dtype(port.dtype) == np.dtype(wanted), port.name
    weights = [v for n, v in model.graph.initializers.items() if n.endswith(".weight")]
    assert {np.dtype(v.dtype.numpy()) for v in weights if v.dtype} == {np.dtype(DTYPES[dtype])}


def test_lowering_costs_no_layer_anything() -> None:
    """Norms, rotaries, matrices stay one node each; Casts do not grow with depth."""
    counts: list[Counter[str]] = []
    for layers in (2, 6):
        was, now = host(TinyDecoder(layers=layers)), host(TinyDecoder(layers=layers))
        Pipeline.parse(ALL, GRAFTS).run(was)
        lowered(ALL, "fp16", now)
        before, after = (Counter(n.op_type for n in m.graph) for m in (was, now))
        for op in ("RMSNormalization", "RotaryEmbedding", "Attention", "TensorScatter", "MatMul"):
            assert before[op] == after[op] > 0
        counts.append(after)
    assert counts[0]["Cast"] == counts[1]["Cast"] == 3, "the logits and two taps"


def test_no_two_attentions_read_one_boolean_mask() -> None:
    model = host(TinyDecoder(layers=4))
    lowered(ALL, "fp16", model)
    masks = [n.inputs[3] for n in model.graph if n.op_type == "Attention"]
    assert len(set(masks)) == len(masks) == 4


def test_no_more_slots_than_the_host_addresses() -> None:
    model = host(TinyDecoder(positions=48))
    Pipeline.parse("anchors | kv-cache | lower-tensorrt", GRAFTS).run(model, decoder_feed(61))
    assert {p.shape[2] for p in read_ports(model) if p.mirror is not None} == {48}


def test_the_same_numbers_are_one_weight() -> None:
    model = host()
    embedding = model.graph.initializers["embed.weight"]
    head = model.graph.initializers["lm_head.weight"]
    head.const_value = embedding.const_value
    lowered(ALL, "fp16", model)
    assert "embed.weight" in model.graph.initializers
    assert "lm_head.weight" not in model.graph.initializers


def far(monkeypatch: pytest.MonkeyPatch | None) -> float:
    """Largest difference of bf16 logits to fp32 at position 1,900, biased by ALiBi."""
    if monkeypatch is not None:
        monkeypatch.setattr(AttentionLowering, "_shift_bias", lambda *a: None)
    spec = TinyDecoder(alibi=True, positions=2048)
    fp32, bf16 = host(spec), host(spec)
    Pipeline.parse("anchors | kv-cache", GRAFTS).run(fp32)
    low = Pipeline.parse("anchors | kv-cache | lower-tensorrt{dtype=bf16}", GRAFTS)
    low.run(bf16)
    rng, feed = np.random.default_rng(0), decoder_feed(61, batch=1)
    feed["positions"] += 1900
    feed["write_index"] = np.asarray([1900])
    for port in read_ports(fp32):
        if port.role in ("cache.key", "cache.value") and port.direction == "in":
            feed[port.name] = rng.normal(size=(1, 2, 2048, 16)).astype(np.float32)
    gap = run(fp32, feed)["logits"] - run(bf16, low.grafts[-1].neutral(feed, bf16))["logits"]
    return float(np.max(np.abs(gap)))


def test_alibi_keeps_its_digits_far_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert far(None) < 0.1
    assert far(monkeypatch) > 0.2, "biases of -950 in bf16 are 4 apart"


def test_a_weight_beyond_fp16_is_named() -> None:
    model = host()
    weight = model.graph.initializers["embed.weight"]
    assert weight.const_value is not None
    table = weight.const_value.numpy().copy()
    table[60, 0] = 1e5  # a token that the feed leaves out
    weight.const_value = ir.tensor(table, name=weight.name)
    lowered("anchors", "bf16", model.clone(), decoder_feed(60))
    with pytest.raises(NotApplicable, match=r"'embed.weight' holds 1e\+05, beyond"):
        lowered("anchors", "fp16", model, decoder_feed(60))


def test_the_law_judges_by_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of 1 % is fp16's to make but not fp32's."""

    def worse(model: ir.Model) -> Prepared:
        def prepared(feed: Mapping[str, Array]) -> Feed:
            off = 1.01 if "cache.0.key" in feed and feed["cache.0.key"].shape[2] == 32 else 1
            return {k: v * off if k == "logits" else v for k, v in run(model, feed).items()}

        return prepared

    monkeypatch.setattr("graftline.passes.laws.prepare", worse)
    for dtype, passes in (("fp32", False), ("bf16", True)):
        model, feed = host(), decoder_feed(61)
        text = f"anchors | kv-cache | lower-tensorrt{{dtype={dtype},capacity=32}}"
        pipeline = Pipeline.parse(text, GRAFTS)
        if passes:
            pipeline.run(model, feed)
        else:
            with pytest.raises(LawBroken, match=r"'neutral' at 'logits': 0\.01"):
                pipeline.run(model, feed)


def with_node(op_type: str, domain: str = "", **attributes: object) -> ir.Model:
    """The tiny host with one more node on its tokens."""
    model = host()
    node = ir.node(op_type, [model.graph.inputs[0]], attributes, domain=domain, name="odd")
    model.graph.append(node)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_node("MatMulNBits", "com.microsoft"), r"MatMulNBits is ONNX Runtime's: .*fp16.*odd"),
        (with_node("Made", "acme"), r"acme::Made is not an operator .* \(looked at: odd"),
        (with_node("Unique"), r"TensorRT's importer has no Unique \(looked at: odd"),
        (
            with_node("If", then_branch=ir.Graph([], [], nodes=[])),
            "If: control flow is not lowered",
        ),
    ],
)
def test_what_cannot_be_lowered_is_named(model: ir.Model, message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        Pipeline.parse("lower-tensorrt", GRAFTS).run(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dtype=fp61", "no dtype 'fp61'; did you mean 'fp16'?"),
        ("capacity=0", "capacity is at least 16 slots, not 0"),
    ],
)
def test_options_are_refused_in_words(options: str, message: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        Pipeline.parse(f"lower-tensorrt{{{options}}}", GRAFTS).run(host())
    assert message in str(caught.value)


def test_a_soft_cap_without_a_mask_is_refused() -> None:
    with pytest.raises(NotApplicable, match="soft cap and no mask: put kv-cache before"):
        lowered("anchors", "fp16", host(softcap=2.0))
