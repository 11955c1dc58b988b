"""lower-tensorrt: the host's outputs in three precisions, what it writes, and what it refuses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.facts import DecoderFacts, decoder_facts, write_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import Port, read_ports, write_ports
from tests.passes.lower.tensorrt.tensorrt_hosts import (
    ALL,
    DTYPES,
    HOSTS,
    WITHOUT_HEADS,
    host,
    listing,
    lowered,
)
from tests.passes.tiny_hosts import decoder_feed, filled


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


@pytest.mark.parametrize("passes", sorted(WITHOUT_HEADS))
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
    rng = np.random.default_rng(0)
    numbers = {
        "table": rng.normal(size=(9, 16)).astype(np.float32),
        "scale": np.ones(16, np.float32),
        "one": np.ones(1, np.int64),
    }
    model = filled(BEFORE, numbers)
    shape = ("B", 1, "S", 16)
    slots: Any = {"state": "slots", "valid_by": "write_index", "compare": "written"}
    ports = [
        Port("tokens", "tokens", "in", "int64", ("B", "N")),
        Port("write_index", "write_index", "in", "int64", ("B",)),
        Port("cache", "cache.key", "in", "float32", shape, 0, **slots),
        Port("mask", "mask", "in", "bool", ("B", 1, "N", "S")),
        Port("y", "hidden", "out", "float32", ("B", 1, "N", 16)),
        Port("written", "cache.key", "out", "float32", shape, 0, mirror="cache", **slots),
    ]
    write_ports(model, ports)
    write_facts(model, DecoderFacts(9, 16, 1, 1, 1, 16, 64))
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
    assert decoder_facts(model).dtype == "float16"


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
