"""depth-rest: with the blocks that it leaves out it is the host, taken apart and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.cut_depth import CutDepth
from graftline.passes.grafts.depth_rest import DepthRest, first_blocks
from graftline.passes.laws.common import infer_shapes
from graftline.ports import Port, read_ports, write_ports
from tests.passes.grafts.test_cut_depth import small
from tests.passes.tiny_hosts import decoder_feed

AFTER = [
    "val_0 = Identity(stream.0)",
    "normed1 = RMSNormalization(val_0, scale)",
    "heads1 = Unsqueeze(normed1, one)",
    "mixed1 = Attention(heads1, heads1, heads1)",
    "added1 = Squeeze(mixed1, one)",
    "x2 = Add(val_0, added1)",
    "last = RMSNormalization(x2, scale)",
    "logits = MatMul(last, head)",
]
GRAFTED = "anchors | kv-cache | select-rows | tap{layers=0+3+norm} | reduce-logits{topk=4}"


def cut(text: str, spec: TinyDecoder) -> ir.Model:
    model = spec.build()
    infer_shapes(model)
    Pipeline.parse(text, GRAFTS).run(model)
    return model


def positioned() -> ir.Model:
    """The small host with positions, as every decoder has them."""
    model = small()
    model.graph.inputs.append(
        ir.Value(
            name="positions", shape=ir.Shape(["B", "N"]), type=ir.TensorType(ir.DataType.INT64)
        )
    )
    port = Port("positions", "positions", "in", "int64", ("B", "N"))
    write_ports(model, [*read_ports(model), port])
    return model


def test_before_and_after() -> None:
    model = positioned()
    feed = {"tokens": np.asarray([[3, 1, 4, 1]]), "positions": np.arange(4)[None]}
    reports = Pipeline.parse("anchors | depth-rest{blocks=1}", GRAFTS).run(model, feed)
    lines = [
        f"{n.outputs[0].name} = {n.op_type}({', '.join(v.name or '' for v in n.inputs if v)})"
        for n in model.graph
    ]
    assert lines == AFTER
    assert [v.name for v in model.graph.inputs] == ["positions", "stream.0"]
    assert reports[-1].laws[-1].law == "joined"
    assert "1 blocks and then the rest are the host's" in reports[-1].laws[-1].text


@pytest.mark.parametrize(
    "spec",
    [
        TinyDecoder(layers=4),
        TinyDecoder(layers=4, window=3),
        TinyDecoder(layers=4, alibi=True),
    ],
    ids=["grouped", "window", "alibi"],
)
@pytest.mark.parametrize("blocks", [2])
def test_both_parts_are_the_host(spec: TinyDecoder, blocks: int) -> None:
    """All laws, lowered too; and by hand, with every cache in one of the two."""
    feed, model = decoder_feed(61), spec.build()
    infer_shapes(model)
    Pipeline.parse(f"{GRAFTED} | depth-rest{{blocks={blocks}}} | lower-ort", GRAFTS).run(
        model, feed
    )
    whole = cut(GRAFTED, spec)
    for graft in Pipeline.parse(GRAFTED, GRAFTS).grafts:
        feed = graft.neutral(feed, whole)
    rest = whole.clone()
    DepthRest(blocks).apply(rest)
    found, stream = first_blocks(whole, blocks, feed, run)
    fed = DepthRest(blocks).neutral(feed, rest) | {f"stream.{blocks - 1}": stream}
    both, expected = found | run(rest, fed), run(whole, feed)
    assert both.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(both[name], expected[name], rtol=0, atol=3e-5)
    assert {p.layer for p in read_ports(rest) if p.mirror} == set(range(blocks, 4))


def test_the_work_and_the_weights_are_those_of_the_blocks_left() -> None:
    text = "anchors | kv-cache | select-rows"
    whole = cut(text, TinyDecoder(layers=8))
    first, rest = (
        cut(f"{text} | {part}{{blocks=3}}", TinyDecoder(layers=8))
        for part in ("cut-depth", "depth-rest")
    )
    attentions = [sum(n.op_type == "Attention" for n in m.graph) for m in (whole, first, rest)]
    assert attentions == [8, 3, 5]
    assert decoder_facts(rest).layers == 5
    parts = {*first.graph.initializers} | {*rest.graph.initializers}
    assert parts == {*whole.graph.initializers}
    assert "embed.weight" not in rest.graph.initializers


def test_of_no_blocks_the_norm_and_the_head_are_left() -> None:
    spec = TinyDecoder(layers=3)
    text = "anchors | kv-cache | select-rows | reduce-logits{topk=4}"
    head = cut(f"{text} | depth-rest", spec)
    assert not [n for n in head.graph if n.op_type == "Attention"]
    whole = cut(f"{text} | tap{{layers=2}}", spec)
    feed = decoder_feed(61)
    for graft in Pipeline.parse(text, GRAFTS).grafts:
        feed = graft.neutral(feed, whole)
    expected = run(whole, feed)
    fed = DepthRest().neutral(feed, head) | {"stream.2": expected["hidden.2"]}
    np.testing.assert_allclose(run(head, fed)["logits"], expected["logits"], atol=3e-5)


@pytest.mark.parametrize("blocks", [-1, 2, 9])
def test_an_exit_outside_the_depth_is_refused(blocks: int) -> None:
    with pytest.raises(NotApplicable, match=r"2 blocks 1 to 1 can be kept.*block 1 ends at x2"):
        Pipeline.parse(f"anchors | depth-rest{{blocks={blocks}}}", GRAFTS).run(small())


def test_a_rest_that_reads_more_than_the_stream_is_refused() -> None:
    model = small()
    Pipeline.parse("anchors", GRAFTS).run(model)
    attention = [n for n in model.graph if n.op_type == "Attention"]
    attention[1].replace_input_with(1, attention[0].inputs[1])  # keys that blocks share
    with pytest.raises(NotApplicable, match=r"follows block 0 reads more of it.*Unsqueeze"):
        DepthRest(1).requires(model)
    model = small()
    Pipeline.parse("anchors", GRAFTS).run(model)
    nodes = {n.outputs[0].name: n for n in model.graph}
    nodes["x2"].replace_input_with(0, nodes["x0"].outputs[0])  # the embedding again
    with pytest.raises(NotApplicable):
        DepthRest(1).requires(model)


def test_a_stream_of_another_width_is_refused() -> None:
    model = small()
    Pipeline.parse("anchors", GRAFTS).run(model)
    block_outputs(model.graph)[0].shape = ir.Shape(["B", "N", 8])
    with pytest.raises(NotApplicable, match="leaves block 0 8 wide and the head reads 16"):
        CutDepth(1).requires(model)
    with pytest.raises(NotApplicable, match="leaves block 0 8 wide"):
        DepthRest(1).requires(model)


def test_the_law_catches_a_rest_that_begins_at_another_block() -> None:
    class Early(DepthRest):
        def apply(self, model: ir.Model) -> None:
            stream = block_outputs(model.graph)
            second = stream[self.blocks]
            for user, index in list(second.uses()):
                user.replace_input_with(index, stream[self.blocks - 1])
            super().apply(model)

    model = cut("anchors", TinyDecoder(layers=4))
    with pytest.raises(LawBroken, match="'joined' at 'logits'"):
        Pipeline((Early(2),)).run(model, decoder_feed(61))
