"""cut-depth: what is left is the host's own first blocks, norm and head, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import DecoderFacts, decoder_facts, write_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.cut_depth import CutDepth
from graftline.passes.laws.common import infer_shapes
from graftline.passes.pipeline.graft import BLOCK
from graftline.ports import Port, read_ports, write_ports
from tests.passes.tiny_hosts import decoder_feed, filled
from tests.rounding import assert_same_sums, decoder_terms

BEFORE = """
<ir_version: 11, opset_import: ["" : 24]>
small (int64[B,N] tokens, float[9,16] table, float[16] scale, int64[1] one, float[16,9] head)
  => (float[B,N,9] logits)
{
  x0 = Gather (table, tokens)
  normed0 = RMSNormalization <axis = -1> (x0, scale)
  heads0 = Unsqueeze (normed0, one)
  mixed0 = Attention <is_causal = 1> (heads0, heads0, heads0)
  added0 = Squeeze (mixed0, one)
  x1 = Add (x0, added0)
  normed1 = RMSNormalization <axis = -1> (x1, scale)
  heads1 = Unsqueeze (normed1, one)
  mixed1 = Attention <is_causal = 1> (heads1, heads1, heads1)
  added1 = Squeeze (mixed1, one)
  x2 = Add (x1, added1)
  last = RMSNormalization <axis = -1> (x2, scale)
  logits = MatMul (last, head)
}
"""
AFTER = [
    "x0 = Gather(table, tokens)",
    "normed0 = RMSNormalization(x0, scale)",
    "heads0 = Unsqueeze(normed0, one)",
    "mixed0 = Attention(heads0, heads0, heads0)",
    "added0 = Squeeze(mixed0, one)",
    "x1 = Add(x0, added0)",
    "last = RMSNormalization(x1, scale)",
    "logits = MatMul(last, head)",
]
GRAFTED = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+3+norm} | reduce-logits{topk=4}"
)


def small() -> ir.Model:
    rng = np.random.default_rng(0)
    numbers = {
        "table": rng.normal(size=(9, 16)).astype(np.float32),
        "scale": np.ones(16, np.float32),
        "one": np.ones(1, np.int64),
        "head": rng.normal(size=(16, 9)).astype(np.float32),
    }
    model = filled(BEFORE, numbers)
    ports = [
        Port("tokens", "tokens", "in", "int64", ("B", "N")),
        Port("logits", "logits", "out", "float32", ("B", "N", 9)),
    ]
    write_ports(model, ports)
    write_facts(model, DecoderFacts(9, 16, 2, 1, 1, 16, 64))
    infer_shapes(model)
    return model


def cut(text: str, spec: TinyDecoder) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)


def test_before_and_after() -> None:
    model = small()
    feed = {"tokens": np.asarray([[3, 1, 4, 1]])}
    reports = Pipeline.parse("anchors | cut-depth{blocks=1}", GRAFTS).run(model, feed)
    lines = [
        f"{n.outputs[0].name} = {n.op_type}({', '.join(v.name or '' for v in n.inputs if v)})"
        for n in model.graph
    ]
    assert lines == AFTER
    assert reports[-1].laws[-1].law == "prefix"
    assert "after block 0" in reports[-1].laws[-1].text


@pytest.mark.parametrize(
    "spec",
    [TinyDecoder(layers=4), TinyDecoder(layers=4, window=3), TinyDecoder(layers=4, alibi=True)],
    ids=["grouped", "window", "alibi"],
)
@pytest.mark.parametrize("blocks", [1, 3])
def test_what_is_left_is_the_shallower_decoder(spec: TinyDecoder, blocks: int) -> None:
    """Before the other grafts or behind them all: the same answers."""
    early = GRAFTED.replace("anchors", f"anchors | cut-depth{{blocks={blocks}}}")
    early = early.replace("layers=0+3+norm", "layers=0+norm")
    late = f"{GRAFTED} | cut-depth{{blocks={blocks}}}"
    feeds = []
    for text in (early, late):
        model = spec.build()
        infer_shapes(model)
        feed = decoder_feed(61)
        pipeline = Pipeline.parse(text, GRAFTS)
        pipeline.run(model, feed)  # all laws
        for graft in pipeline.grafts:
            feed = graft.neutral(feed, model)
        feeds.append(run(model, feed))
        assert {p.layer for p in read_ports(model) if p.mirror} == set(range(blocks))
    kept = feeds[1].keys() - ({"hidden.3"} if blocks < 4 else set())
    assert kept == feeds[0].keys()
    for name in kept:
        assert_same_sums(feeds[0][name], feeds[1][name], decoder_terms(spec, seen=8))


def test_the_work_and_the_weights_of_the_other_blocks_are_gone() -> None:
    """A cut of 8 blocks to 2 has the nodes, the weights and the ports of a host of 2."""
    text = GRAFTED.replace("+3", "")
    left = cut(f"{text} | cut-depth{{blocks=2}}", TinyDecoder(layers=8))
    whole, shallow = (cut(text, TinyDecoder(layers=n)) for n in (8, 2))
    assert len(left.graph) == len(shallow.graph) < len(whole.graph) / 2
    assert weight_bytes(left) == weight_bytes(shallow)
    assert sorted(p.name for p in read_ports(left)) == sorted(p.name for p in read_ports(shallow))
    assert decoder_facts(left).layers == 2
    lowered = cut(f"{text} | cut-depth{{blocks=2}} | lower-ort", TinyDecoder(layers=8))
    assert sum(n.op_type == "GroupQueryAttention" for n in lowered.graph) == 2


def test_parameters_are_counted_again() -> None:
    model = TinyDecoder(layers=4).build()
    size = sum(
        int(np.prod(v.const_value.shape))
        for v in model.graph.initializers.values()
        if v.const_value
    )
    write_facts(model, dataclasses.replace(decoder_facts(model), parameters=size))
    infer_shapes(model)
    Pipeline.parse("anchors | cut-depth{blocks=1}", GRAFTS).run(model)
    block = (size - decoder_facts(model).parameters) / 3
    assert block == 2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 48 + 2 * 32


@pytest.mark.parametrize("blocks", [-1, 0, 2, 9])
def test_a_depth_the_host_does_not_have_is_refused(blocks: int) -> None:
    with pytest.raises(NotApplicable, match=r"2 blocks 1 to 1 can be kept.*block 1 ends at x2"):
        Pipeline.parse(f"anchors | cut-depth{{blocks={blocks}}}", GRAFTS).run(small())


def test_a_host_without_stamps_or_with_two_streams_is_refused() -> None:
    with pytest.raises(NotApplicable, match="run anchors first"):
        CutDepth(1).requires(small())
    model = small()
    Pipeline.parse("anchors", GRAFTS).run(model)
    norm = next(n for n in model.graph if n.outputs[0].name == "last")
    both = ir.node("Add", [block_outputs(model.graph)[0], block_outputs(model.graph)[1]])
    both.metadata_props[BLOCK] = "head"
    model.graph.insert_before(norm, both)
    norm.replace_input_with(0, both.outputs[0])
    with pytest.raises(NotApplicable, match=r"a single residual stream.*Add"):
        CutDepth(1).requires(model)


def test_the_law_catches_a_cut_at_another_block() -> None:
    class OneTooFew(CutDepth):
        def apply(self, model: ir.Model) -> None:
            CutDepth(self.blocks - 1).apply(model)

        def dropped(self, before: ir.Model) -> frozenset[str]:
            return CutDepth(self.blocks - 1).dropped(before)

    class Unnormed(CutDepth):
        def apply(self, model: ir.Model) -> None:
            super().apply(model)
            scale = model.graph.initializers["norm.weight"]
            scale.const_value = ir.tensor(np.ones(32, np.float32), name="norm.weight")

    for wrong in (OneTooFew(2), Unnormed(2)):
        model = cut("anchors", TinyDecoder(layers=3))
        with pytest.raises(LawBroken, match="'prefix' at 'logits'"):
            Pipeline((wrong,)).run(model, decoder_feed(61))


def test_the_law_catches_a_block_that_reads_the_cache_of_another() -> None:
    class WrongCaches(CutDepth):
        def apply(self, model: ir.Model) -> None:
            inputs = {value.name: value for value in model.graph.inputs}
            first, third = (inputs[f"cache.{i}.value"] for i in (0, 2))
            user, index = next(iter(third.uses()))
            user.replace_input_with(index, first)
            super().apply(model)

    model = cut("anchors | kv-cache", TinyDecoder(layers=4))
    random = np.random.default_rng(1)
    feed = Pipeline.parse("kv-cache", GRAFTS).grafts[0].neutral(decoder_feed(61), model)
    for name in [n for n in feed if n.startswith("cache.")]:
        feed[name] = random.normal(size=feed[name].shape).astype(np.float32)
    feed["write_index"] = np.ones(2, np.int64)
    with pytest.raises(LawBroken, match=r"'alike' at block 2"):
        Pipeline((WrongCaches(3),)).run(model, feed)
