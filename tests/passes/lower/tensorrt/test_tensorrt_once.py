"""lower-tensorrt on hosts that run once: what takes the precision, and which sizes stay open."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed
from graftline.facts import read_facts, write_facts
from graftline.kinds import kind_of
from graftline.kinds.one_pass import OnePass
from graftline.models.graph_facts import facts_of_graph
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.lower import precision
from graftline.ports import read_ports
from tests.kinds.latent_decoders import model_of

TWICE = """
<ir_version: 10, opset_import: ["" : 20]>
twice (float[B,3,S,N] low, float[8,3,3,3] enter, float[8] even, float[8] bias, float[3,8,3,3] leave)
  => (float[B,3,S2,N2] high)
{
  scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
  a = Conv <pads = [1, 1, 1, 1]> (low, enter)
  b = InstanceNormalization (a, even, bias)
  c = Relu (b)
  d = Resize <mode = "nearest"> (c, , scales)
  high = Conv <pads = [1, 1, 1, 1]> (d, leave)
}
"""
"""Dimensions that are called as those of a decoder of text are."""


def canonical() -> tuple[ir.Model, Feed]:
    model = model_of(TWICE)
    write_facts(model, facts_of_graph(model, ""))
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    kind = kind_of(read_facts(model))
    assert isinstance(kind, OnePass)
    return model, kind.feed(read_ports(model), read_facts(model), 0)


def lowered(dtype: str) -> tuple[ir.Model, list[str]]:
    model, feed = canonical()
    Pipeline.parse(f"lower-tensorrt{{dtype={dtype}}}", GRAFTS).run(model, feed)
    ops = [f"{n.op_type} {n.outputs[0].dtype.name}" for n in model.graph if n.outputs[0].dtype]
    return model, ops


@pytest.mark.parametrize(("dtype", "name"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_products_take_the_precision_and_sums_do_not(dtype: str, name: str) -> None:
    before, _ = canonical()
    after, ops = lowered(dtype)
    assert [op for op in ops if "Constant" not in op] == [
        f"Cast {name}", f"Conv {name}", "Cast FLOAT", "InstanceNormalization FLOAT", "Relu FLOAT",
        "Resize FLOAT", f"Cast {name}", f"Conv {name}", "Cast FLOAT",
    ]  # fmt: skip
    products = 4 * (8 * 3 * 9 + 3 * 8 * 9)
    assert weight_bytes(before) - weight_bytes(after) == products / 2
    assert {p.dtype for p in read_ports(after)} == {"float32"}


def test_sizes_stay_open_whatever_they_are_called() -> None:
    after, _ = lowered("fp32")
    assert [p.shape for p in read_ports(after)] == [("B", 3, "S", "N"), ("B", 3, "S2", "N2")]


def test_the_scales_of_a_resize_stay_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what it resizes is of 16 bits."""
    monkeypatch.setattr(precision, "WIDE", frozenset[str]())
    after, ops = lowered("fp16")
    assert "Resize FLOAT16" in ops
    resize = next(n for n in after.graph if n.op_type == "Resize")
    assert resize.inputs[2] is not None
    assert resize.inputs[2].dtype == ir.DataType.FLOAT
    monkeypatch.setattr(precision, "FP32", {})
    with pytest.raises(LawBroken, match="lower-tensorrt breaks the law 'typed'"):
        lowered("fp16")


def test_a_host_of_another_16_bits_is_refused() -> None:
    text = TWICE.replace("float[", "float16[")
    model = model_of(text, dtype="float16")
    write_facts(model, facts_of_graph(model, ""))
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    with pytest.raises(NotApplicable, match="computes in float16, not in float32"):
        Pipeline.parse("lower-tensorrt{dtype=fp32}", GRAFTS).run(model)
    nodes = len(model.graph)
    Pipeline.parse("lower-tensorrt{dtype=fp16}", GRAFTS).run(model)
    assert len(model.graph) == nodes, "nothing is cast"
    assert {p.dtype for p in read_ports(model)} == {np.dtype(np.float16).name}
