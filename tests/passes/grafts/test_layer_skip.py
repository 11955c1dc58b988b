"""layer-skip: what is left is the host without what is skipped, and nothing of that is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.graph.cut import hand_over
from graftline.passes.graph.emit import Emit
from graftline.passes.laws.common import infer_shapes
from graftline.ports import Port, read_ports, write_ports
from tests.passes.grafts.small_blocks import BEHIND_A_NORM, FEED, SIDE_BY_SIDE, small
from tests.passes.tiny_hosts import decoder_feed
from tests.rounding import assert_same_sums, decoder_terms

GRAFTED = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+3+norm} | reduce-logits{topk=4}"
)


def skipped(options: str, model: ir.Model) -> list[str]:
    """The graph's lines after layer-skip, all laws checked."""
    reports = Pipeline.parse(f"anchors | layer-skip{{{options}}}", GRAFTS).run(model, FEED)
    assert reports[-1].laws[-1].law == "route"
    return [
        f"{n.outputs[0].name} = {n.op_type}({', '.join(v.name or '' for v in n.inputs if v)})"
        for n in model.graph
    ]


def cut(text: str, spec: TinyDecoder) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)


def test_before_and_after_a_whole_block() -> None:
    assert skipped("layers=0", small()) == [
        "x0 = Gather(table, tokens)",
        "normed1 = RMSNormalization(x0, scale)",
        "heads1 = Unsqueeze(normed1, one)",
        "mixed1 = Attention(heads1, heads1, heads1)",
        "added1 = Squeeze(mixed1, one)",
        "m1 = Add(x0, added1)",
        "again1 = RMSNormalization(m1, scale)",
        "wide1 = MatMul(again1, up)",
        "mlp1 = Add(wide1, bias)",
        "x2 = Add(m1, mlp1)",
        "last = RMSNormalization(x2, scale)",
        "logits = MatMul(last, head)",
    ]


def test_before_and_after_parts_of_blocks() -> None:
    """Of block 0 the attention goes, of block 1 the MLP with its bias."""
    assert skipped("attention=0,mlp=1", small()) == [
        "x0 = Gather(table, tokens)",
        "again0 = RMSNormalization(x0, scale)",
        "wide0 = MatMul(again0, up)",
        "mlp0 = Add(wide0, bias)",
        "x1 = Add(x0, mlp0)",
        "normed1 = RMSNormalization(x1, scale)",
        "heads1 = Unsqueeze(normed1, one)",
        "mixed1 = Attention(heads1, heads1, heads1)",
        "added1 = Squeeze(mixed1, one)",
        "m1 = Add(x1, added1)",
        "last = RMSNormalization(m1, scale)",
        "logits = MatMul(last, head)",
    ]


def test_attention_and_mlp_side_by_side_are_told_apart() -> None:
    lines = skipped("attention=0,mlp=1", small(SIDE_BY_SIDE))
    assert "x1 = Add(mlp0, x0)" in lines
    assert "x2 = Add(added1, x1)" in lines
    assert len(lines) == 12


def test_a_route_that_skips_nothing_is_the_host() -> None:
    model, host = small(), small()
    lines = skipped("layers=", model)
    assert len(lines) == len(host.graph)
    assert np.array_equal(run(model, FEED)["logits"], run(host, FEED)["logits"])


def silent(spec: TinyDecoder, route: LayerSkip) -> ir.Model:
    """The host whose skipped parts add nothing: the last matrix of each holds zeros."""
    host = spec.build()
    infer_shapes(host)
    Pipeline.parse("anchors", GRAFTS).run(host)
    way = route.route(host)
    names = [f"layers.{i}.attention.o.weight" for i in way.attention]
    for name in [*names, *(f"layers.{i}.mlp.down.weight" for i in way.mlp)]:
        held = host.graph.initializers[name]
        assert held.const_value is not None
        held.const_value = ir.tensor(np.zeros(held.const_value.shape, np.float32), name=name)  # type: ignore[arg-type]
    return host


@pytest.mark.parametrize(
    "spec",
    [TinyDecoder(layers=5), TinyDecoder(layers=5, window=3), TinyDecoder(layers=5, alibi=True)],
    ids=["grouped", "window", "alibi"],
)
@pytest.mark.parametrize(
    "route",
    [LayerSkip("0"), LayerSkip("middle"), LayerSkip("0+2+4"), LayerSkip("1-4"),
     LayerSkip("", "1-2"), LayerSkip("", "", "0+4"), LayerSkip("2", "0", "0+3")],
    ids=str,
)  # fmt: skip
def test_a_route_is_the_host_whose_skipped_parts_add_nothing(
    spec: TinyDecoder, route: LayerSkip
) -> None:
    """Behind all other grafts and before them, lowered; with all laws."""
    host = silent(spec, route)
    way, expected = route.route(host), run(host, decoder_feed(61))["logits"]
    late = f"{GRAFTED} | {route}"
    early = f"anchors | {route}{GRAFTED.removeprefix('anchors')}".replace("0+3+", "")
    for text in (late, early):
        model = spec.build()
        infer_shapes(model)
        feed = decoder_feed(61)
        pipeline = Pipeline.parse(f"{text} | pack-projections | lower-ort", GRAFTS)
        pipeline.run(model, feed)
        for graft in pipeline.grafts:
            feed = graft.neutral(feed, model)
        got = run(model, feed)
        best = np.take_along_axis(expected, got["topk_ids"], -1)
        assert_same_sums(got["topk_logits"], best, decoder_terms(spec, seen=24))
        kept = set(range(5)) - way.attention
        assert {p.layer for p in read_ports(model) if p.mirror} == kept
        assert sum(n.op_type == "GroupQueryAttention" for n in model.graph) == len(kept)


def test_the_work_and_the_weights_of_skipped_blocks_are_gone() -> None:
    """A route of 2 blocks of 8 has the nodes, the weights and the ports of a host of 2."""
    text, lowered = GRAFTED.replace("0+3+norm", "norm"), " | pack-projections | lower-ort"
    left = cut(f"{text} | layer-skip{{layers=1-4+6-7}}{lowered}", TinyDecoder(layers=8))
    shallow = cut(text + lowered, TinyDecoder(layers=2))
    assert len(left.graph) == len(shallow.graph)
    assert weight_bytes(left) == weight_bytes(shallow)
    assert len(read_ports(left)) == len(read_ports(shallow))
    assert decoder_facts(left).layers == 2


def test_work_is_less_by_each_part() -> None:
    spec = TinyDecoder(layers=4)
    whole = weight_bytes(cut("anchors | kv-cache", spec))
    attention, mlp = (
        whole - weight_bytes(cut(f"anchors | kv-cache | layer-skip{{{part}=1}}", spec))
        for part in ("attention", "mlp")
    )
    assert attention == 4 * (2 * 32 * 64 + 2 * 32 * 32 + 32)
    assert mlp == 4 * (3 * 32 * 48 + 32)


REFUSED: Mapping[str, str] = {
    "layers=0-1": "a route that skips every block of 2 is no model; keep one",
    "attention=0+1": "skips every attention of 2 is no model",
    "layers=2": "there is no block 2 to skip; this host has blocks 0 to 1",
    "layers=1-0": "the range of blocks 1-0 is empty; write 0-1",
    "layers=first": "'first' is neither a block nor a range of blocks",
    "mlp=-1": "'-1' is neither a block nor a range",
}


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_a_route_that_cannot_be_is_refused(options: str) -> None:
    with pytest.raises(NotApplicable, match=REFUSED[options]) as caught:
        skipped(options, small())
    assert "\n" not in str(caught.value)


def test_a_host_without_stamps_or_with_blocks_gone_is_refused() -> None:
    with pytest.raises(NotApplicable, match="run anchors first"):
        LayerSkip("0").requires(small())
    with pytest.raises(NotApplicable, match="skips blocks already; name all in one pass"):
        Pipeline.parse("anchors | layer-skip{layers=0} | layer-skip{layers=0}", GRAFTS).run(
            small(blocks=3)
        )


def test_a_block_of_another_width_is_named() -> None:
    model = small()
    Pipeline.parse("anchors", GRAFTS).run(model)
    block_outputs(model.graph)[0].shape = ir.Shape(["B", "N", 24])
    with pytest.raises(NotApplicable, match=r"cannot skip block 0: .*x1 of float\[24\]"):
        LayerSkip("0").requires(model)


def test_keys_that_another_block_reads_are_named() -> None:
    model = small(blocks=3)
    Pipeline.parse("anchors", GRAFTS).run(model)
    early, late = (with_role(model.graph, "attention")[i] for i in (0, 2))
    late.replace_input_with(1, early.inputs[1])
    with pytest.raises(NotApplicable, match=r"cannot skip block 0: other blocks read more.*mixed2"):
        LayerSkip("0").requires(model)
    LayerSkip("1").requires(model)


def test_parts_of_a_block_that_norms_its_sums_are_refused_and_the_block_is_not() -> None:
    with pytest.raises(NotApplicable, match=r"the attention of block 1 alone; name the block in"):
        skipped("attention=1", small(BEHIND_A_NORM))
    assert "heads1 = Unsqueeze(x0, one)" in skipped("layers=0", small(BEHIND_A_NORM))


def test_slots_that_no_cache_left_counts_are_refused() -> None:
    model = cut("anchors | kv-cache", TinyDecoder(layers=2))
    write_ports(model, [p if p.layer != 1 else _wider(p) for p in read_ports(model)])
    with pytest.raises(NotApplicable, match=r"counts slots by cache\.0\.key"):
        LayerSkip("0").requires(model)


def _wider(port: Port) -> Port:
    return Port(**{**vars(port), "shape": (*port.shape[:-1], 99)})


def test_a_small_host_skips_of_each_kind_and_keeps_an_attention() -> None:
    assert LayerSkip("10-20").within(2) == LayerSkip("1")
    assert LayerSkip("0-20").within(2) == LayerSkip("1")
    assert LayerSkip("middle").within(2) == LayerSkip("1")
    assert LayerSkip("", "8-15", "12").within(2) == LayerSkip("", "1", "0")
    assert LayerSkip("", "0-20", "").within(3) == LayerSkip("", "1-2")
    assert LayerSkip("5").within(1) == LayerSkip()


def wrong_block(model: ir.Model, graft: LayerSkip) -> None:
    LayerSkip(layers="2").apply(model)


def scaled(model: ir.Model, graft: LayerSkip) -> None:
    """The residual of the skipped block is kept, at half its size."""
    graft.apply(model)
    stream = block_outputs(model.graph)[0]
    emit = Emit(model.graph, "fault", stream.consumers()[0])
    half = emit.op("Mul", [stream, emit.const("half", 0.5, np.float32)])
    for reader in [n for n in stream.consumers() if n is not half.producer()]:
        reader.replace_input_with(list(reader.inputs).index(stream), half)


def cache_written(model: ir.Model, graft: LayerSkip) -> None:
    """The stream passes by the block, which still writes its cache."""
    stream = block_outputs(model.graph)
    hand_over(stream[3], stream[2])


@pytest.mark.parametrize(
    ("fault", "layers", "skip", "where"),
    [
        (wrong_block, 4, "3", "cache.3.key"),
        (scaled, 3, "1", "logits"),
        (cache_written, 4, "3", "cache.3.key"),
    ],
    ids=["wrong_block", "scaled", "cache_written"],
)
def test_the_law_catches(
    fault: Callable[[ir.Model, LayerSkip], None], layers: int, skip: str, where: str
) -> None:
    right = LayerSkip(skip)

    class Wrong(LayerSkip):
        def apply(self, model: ir.Model) -> None:
            fault(model, right)

        def dropped(self, before: ir.Model) -> frozenset[str]:
            return LayerSkip("2-3" if layers == 4 else skip).dropped(before)

    model = cut("anchors | kv-cache", TinyDecoder(layers=layers))
    feed = Pipeline.parse("kv-cache", GRAFTS).grafts[0].neutral(decoder_feed(61), model)
    with pytest.raises(LawBroken, match=f"'route' at '{where}'"):
        Pipeline((Wrong(skip),)).run(model, feed)


def test_the_law_catches_a_wrong_block_by_its_logits() -> None:
    """Without caches, which would tell."""

    class Wrong(LayerSkip):
        def apply(self, model: ir.Model) -> None:
            LayerSkip("1").apply(model)

    with pytest.raises(LawBroken, match="'route' at 'logits'"):
        Pipeline((Wrong("2"),)).run(cut("anchors", TinyDecoder(layers=4)), decoder_feed(61))
