"""Every graft on a tiny decoder: its laws hold, its refusals name what is missing, its work is
counted."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.compiled import compile_graph
from graftline.errors import LawBroken, NotApplicable, PipelineSyntax
from graftline.evaluate import decoder_feed, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_of, block_outputs, stamp_anchors, with_role
from graftline.passes.anchors.reduce import reduce_host
from graftline.passes.grafts.masks import MASK_KEY
from graftline.passes.grafts.tree_mask import TreeMask
from graftline.passes.laws import common as laws
from graftline.passes.laws.common import Memo, infer_shapes
from graftline.passes.pipeline.graft import MADE_BY
from graftline.ports import read_ports
from tests.rounding import assert_same_sums

ALL = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+norm} | "
    "reduce-logits{topk=4,entropy=true} | pack-projections{mlp=true} | lower-ort"
)
HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=3, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "one-block": TinyDecoder(layers=1),
    "head-of-8": TinyDecoder(head_size=8),
    "head-of-4": TinyDecoder(head_size=4),
}


def host(spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    return model


def grafted(text: str, spec: TinyDecoder = HOSTS["grouped"]) -> ir.Model:
    model = host(spec)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS.keys())
@pytest.mark.parametrize("text", [ALL, ALL.replace("tree-mask | ", "")], ids=["tree", "chain"])
def test_every_law_holds_on_every_kind_of_host(spec: TinyDecoder, text: str) -> None:
    reports = Pipeline.parse(text, GRAFTS).run(host(spec), decoder_feed(61))
    assert [r.text.partition("{")[0] for r in reports] == [
        p.strip().partition("{")[0] for p in text.split("|")
    ]
    for report in reports:
        assert {"typed", "wellformed", "interface", "neutral"} <= {r.law for r in report.laws}


@pytest.mark.parametrize("disabled", [logging.NOTSET, logging.CRITICAL])
def test_contradicting_shapes_break_a_law_whatever_is_logged(disabled: int) -> None:
    model = host()
    value = next(n for n in model.graph if n.op_type == "MatMul").outputs[0]
    value.shape = ir.Shape(["B", "N", 7])
    logging.disable(disabled)
    try:
        with pytest.raises(LawBroken, match="'typed' at shape inference"):
            infer_shapes(model)
        assert logging.root.manager.disable == disabled
    finally:
        logging.disable(logging.NOTSET)


def test_pipeline_text_and_parse_are_inverses() -> None:
    assert str(Pipeline.parse(ALL, GRAFTS)) == ALL
    assert str(Pipeline.parse("reduce-logits{topk=8}", GRAFTS)) == "reduce-logits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv-cahe", "unknown pass 'kv-cahe'; did you mean 'kv-cache'?"),
        ("reduce-logits{top=3}", "reduce-logits has no option 'top'; did you mean 'topk'?"),
        ("reduce-logits{topk=many}", "'topk' takes a whole number"),
        ("reduce-logits{entropy=1}", "'entropy' takes true or false"),
        ("a b", "cannot read the pass 'a b'"),
    ],
)
def test_pipeline_errors_say_what_to_do(text: str, message: str) -> None:
    with pytest.raises(PipelineSyntax) as caught:
        Pipeline.parse(text, GRAFTS)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv-cache", "run anchors first"),
        ("anchors | tree-mask", "put kv-cache before it"),
        ("anchors | kv-cache | kv-cache", "has a cache already"),
        ("anchors | kv-cache | tree-mask | tree-mask", "has a tree mask already"),
        ("anchors | tap{layers=2}", "no layer '2'; this host has blocks 0 to 1"),
        ("tap{layers=0}", "run anchors first"),
        ("anchors | tap{layers=1+-1}", "names one layer twice"),
        ("reduce-logits{topk=1}", "topk=0 (none) or at least 2"),
        ("reduce-logits | reduce-logits", "reduced already"),
        ("select-rows", "run anchors first"),
        ("pack-projections", "run anchors first"),
    ],
)
def test_grafts_refuse_by_name(text: str, message: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        grafted(text)
    assert message in str(caught.value)


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


def test_kv_cache_before_and_after() -> None:
    before, after = host(), grafted("anchors | kv-cache")
    assert Counter(n.op_type for n in before.graph)["TensorScatter"] == 0
    assert Counter(n.op_type for n in after.graph)["TensorScatter"] == 4
    cache = [p for p in read_ports(after) if p.role == "cache.key" and p.direction == "in"]
    assert [(p.name, p.shape, p.layer) for p in cache] == [
        ("cache.0.key", ("B", 2, "S", 16), 0),
        ("cache.1.key", ("B", 2, "S", 16), 1),
    ]


def test_lowering_saves_the_work_it_is_for() -> None:
    canonical, lowered = grafted(ALL.replace(" | lower-ort", "")), grafted(ALL)
    was, now = (
        Counter(n.op_type for n in m.graph if n.metadata_props.get(MADE_BY) != "reduce-logits")
        for m in (canonical, lowered)
    )
    assert now["GroupQueryAttention"] == was["Attention"] == 2
    assert now["SkipSimplifiedLayerNormalization"] == 4
    for gone in ("Attention", "TensorScatter", "RotaryEmbedding", "Transpose", "Reshape"):
        assert now[gone] == 0, gone
    assert len(lowered.graph) < len(canonical.graph)


def test_heads_that_do_not_fit_keep_their_attention() -> None:
    lowered = grafted(ALL, HOSTS["head-of-4"])
    assert Counter(n.op_type for n in lowered.graph)["Attention"] == 2


@pytest.mark.parametrize("odd", ["index", "axis", "mode"])
def test_caches_that_are_written_elsewhere_keep_their_attention(odd: str) -> None:
    """GroupQueryAttention writes behind the length, in order: another write is not its."""
    model = grafted("anchors | kv-cache | tree-mask")
    scatter = next(n for n in model.graph if n.op_type == "TensorScatter")
    if odd == "index":
        made = ir.node("Identity", [scatter.inputs[2]])
        model.graph.insert_before(scatter, made)
        scatter.replace_input_with(2, made.outputs[0])
    else:
        change = ir.AttrInt64("axis", 3) if odd == "axis" else ir.AttrString("mode", "circular")
        scatter.attributes[odd] = change
    GRAFTS["lower-ort"]().apply(model)
    assert {n.op_type for n in model.graph if "Attention" in n.op_type} == {"Attention"}


def test_packing_is_one_matmul_per_input() -> None:
    was = Counter(n.op_type for n in grafted("anchors").graph)["MatMul"]
    now = Counter(n.op_type for n in grafted("anchors | pack-projections").graph)["MatMul"]
    assert was - now == 2 * 2, "three projections became one in each of two blocks"


def test_tap_is_the_residual_stream() -> None:
    model = grafted("anchors | tap{layers=-1+norm}")
    feed = decoder_feed(61)
    out = run(model, feed)
    scale = model.graph.initializers["norm.weight"].const_value.numpy()  # type: ignore[union-attr]
    x = out["hidden.1"]
    normed = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * scale
    assert_same_sums(out["hidden.norm"], normed, terms=x.shape[-1])


def test_a_deep_tap_is_held_to_its_laws_on_the_reduced_host() -> None:
    text = "canonicalize | anchors | kv-cache | tap{layers=0+3+-1+norm} | pack-projections"
    made = compile_graph(TinyDecoder(layers=5).build(), f"{text} | lower-ort", lambda line: None)
    taps = {p.name for p in read_ports(made.lowered) if p.role == "hidden"}
    assert taps == {"hidden.0", "hidden.3", "hidden.4", "hidden.norm"}
    assert "tap{layers=0+1+norm}" in {row.graft for row in made.notes if row.law == "neutral"}


def test_two_stage_reductions_over_a_vocabulary_of_many_groups() -> None:
    spec = TinyDecoder(vocabulary=3001, layers=1)
    reports = Pipeline.parse("anchors | reduce-logits{topk=12}", GRAFTS).run(
        host(spec), decoder_feed(3001)
    )
    assert any(r.law == "reduced" for r in reports[-1].laws)


@dataclasses.dataclass(frozen=True)
class LeakyMask(TreeMask):
    """Made wrong on purpose: its neutral mask lets every row see the one after it."""

    def neutral(self, feed, after):  # type: ignore[no-untyped-def]
        fed = super().neutral(feed, after)
        rows = feed["tokens"].shape[1]
        fed["mask"][:, :, np.arange(rows - 1), np.arange(1, rows)] = True
        return fed


def test_the_memo_prepares_a_graph_once_and_never_answers_for_what_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared: list[ir.Model] = []
    real = laws.prepare
    monkeypatch.setattr(laws, "prepare", lambda model: (prepared.append(model), real(model))[1])
    memo, model, feeds = Memo(), host(), [decoder_feed(61, seed=seed) for seed in (0, 1)]
    was = [memo(model, feed)["logits"] for feed in feeds]
    assert prepared == [model]
    for feed, logits in zip(feeds, was, strict=True):
        np.testing.assert_array_equal(logits, run(model, feed)["logits"])
    copy = model.clone()
    memo.renamed(model, copy)
    weight = model.graph.initializers["layers.0.norm_a.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(2 * weight.const_value.numpy(), name=weight.name)
    third = decoder_feed(61, seed=2)
    np.testing.assert_array_equal(memo(copy, third)["logits"], run(copy, third)["logits"])
    assert prepared == [model]
    changed = memo(model, feeds[0])["logits"]
    np.testing.assert_array_equal(changed, run(model, feeds[0])["logits"])
    assert not np.array_equal(changed, was[0])


def test_the_neutral_law_catches_a_wrong_graft() -> None:
    model = grafted("anchors | kv-cache")
    kept = Pipeline.parse("kv-cache", GRAFTS).grafts[0].neutral(decoder_feed(61), model)
    with pytest.raises(LawBroken, match="leaky-mask breaks the law 'neutral' at"):
        Pipeline((LeakyMask(),)).run(model, kept)


def test_the_interface_law_catches_a_forgotten_port() -> None:
    @dataclasses.dataclass(frozen=True)
    class Forgetful(TreeMask):
        def apply(self, model: ir.Model) -> None:
            ports = model.metadata_props["graftline.ports"]
            super().apply(model)
            model.metadata_props["graftline.ports"] = ports

    with pytest.raises(LawBroken, match=r"'interface' at inputs: ports differ at .*mask"):
        Pipeline((Forgetful(),)).run(grafted("anchors | kv-cache"))


def test_pass_time_is_linear_in_nodes_not_layers_squared() -> None:
    """Counts work, not seconds: the graph of 12 blocks is exactly 6 times the block of 2, plus
    ends."""
    counts = [len(grafted(ALL, TinyDecoder(layers=n)).graph) for n in (2, 4, 12)]
    assert counts[2] - counts[1] == 4 * (counts[1] - counts[0])
