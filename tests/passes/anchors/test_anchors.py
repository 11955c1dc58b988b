"""Blocks, roles and the stream are found by structure, and a host is reduced to a few blocks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_of, block_outputs, stamp_anchors, with_role
from graftline.passes.anchors.reduce import reduce_host
from graftline.passes.grafts.masks import MASK_KEY
from graftline.ports import read_ports
from tests.passes.tiny_hosts import decoder_feed, grafted, host


def test_anchors_refuse_a_graph_without_attention() -> None:
    x = ir.Value(name="tokens", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "N"]))
    node = ir.node("Identity", [x])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 24})
    with pytest.raises(NotApplicable, match=r"no attention found.*1 Identity"):
        Pipeline.parse("anchors", GRAFTS).run(ir.Model(graph, ir_version=11))


def test_anchors_find_blocks_roles_and_stream() -> None:
    model = host(TinyDecoder(layers=3))
    stamp_anchors(model)
    sizes = Counter(block_of(n) for n in model.graph if block_of(n) is not None)
    assert set(sizes) == {0, 1, 2}
    assert len(set(sizes.values())) == 1, "isomorphic blocks have as many nodes"
    assert [n.op_type for n in with_role(model.graph, "final_norm")] == ["RMSNormalization"]
    assert [n.op_type for n in with_role(model.graph, "lm_head")] == ["MatMul"]
    assert [v.producer().op_type for v in block_outputs(model.graph)] == ["Add"] * 3  # type: ignore[union-attr]


def test_the_reduced_host_keeps_two_blocks_of_one_kind() -> None:
    deep, shallow = grafted("anchors", TinyDecoder(layers=4)), host(TinyDecoder(layers=2))
    reduced = reduce_host(deep)
    assert reduced.text == "blocks 0+1 of 4"
    assert len(reduced.model.graph) == len(shallow.graph)
    assert len(deep.graph) > len(reduced.model.graph), "the host itself is left alone"
    names = {n for n in reduced.model.graph.initializers if n.startswith("layers.")}
    assert {n.split(".")[1] for n in names} == {"0", "1"}


def test_the_reduced_host_keeps_a_block_of_each_kind() -> None:
    deep = grafted("anchors", TinyDecoder(layers=5, window=4))
    odd = next(n for n in deep.graph if block_of(n) == 3 and n.op_type == "RMSNormalization")
    odd.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.25)
    reduced = reduce_host(deep)
    assert reduced.blocks == (0, 1, 3), "causal, windowed, and one with an epsilon of its own"
    assert {block_of(n) for n in reduced.model.graph} - {None} == {0, 1, 2}
    out = run(reduced.model, decoder_feed(61, rows=reduced.rows))["logits"]
    whole = run(grafted("anchors", TinyDecoder(layers=5, window=4)), decoder_feed(61))["logits"]
    assert out.shape == whole.shape
    assert not np.allclose(out, whole)


def test_the_reduced_host_has_a_cut_vocabulary_and_short_windows() -> None:
    deep = grafted("anchors", TinyDecoder(layers=4, window=4000, vocabulary=5001))
    reduced = reduce_host(deep)
    kept = 512 + 5001 % 256
    logits = next(p for p in read_ports(reduced.model) if p.role == "logits")
    assert logits.shape == ("B", "N", kept)
    assert reduced.model.graph.initializers["window"].const_value.numpy() == 16  # type: ignore[union-attr]
    feed = decoder_feed(kept, rows=reduced.rows)
    reports = Pipeline.parse("kv-cache | tree-mask | reduce-logits", GRAFTS).run(
        reduced.model, feed
    )
    assert all(row.status == "held" for report in reports for row in report.laws)
    windowed = deep.clone()
    for node in with_role(windowed.graph, "attention"):
        if "window" in node.metadata_props[MASK_KEY]:
            node.metadata_props[MASK_KEY] = '{"kind": "window", "size": 16}'
    windowed.graph.initializers["window"].const_value = ir.tensor(np.asarray(16))
    short, long = (run(reduce_host(model).model, feed)["logits"] for model in (windowed, deep))
    assert np.allclose(short, long)
