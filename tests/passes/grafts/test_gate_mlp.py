"""gate-mlp: rows pass by MLPs as the method says, each by itself, and attention is complete."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.gate_mlp import GateMlp
from graftline.passes.laws.common import infer_shapes
from graftline.passes.laws.gated import with_similarity
from graftline.ports import read_ports
from tests.passes.grafts.small_blocks import BEHIND_A_NORM, FEED, SIDE_BY_SIDE, small
from tests.passes.tiny_hosts import decoder_feed
from tests.silenced_mlps import silenced

GRAFTED = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+3+norm} | reduce-logits{topk=4}"
)


def gated(options: str, model: ir.Model) -> list[str]:
    """The graph's lines after gate-mlp, all laws checked."""
    reports = Pipeline.parse(f"anchors | gate-mlp{{{options}}}", GRAFTS).run(model, FEED)
    assert reports[-1].laws[-1].law == "gated"
    names: dict[str, str] = {}  # of values that the graph names as it likes
    for number, value in enumerate(v for n in model.graph for v in n.outputs):
        name = value.name or ""
        names[name] = f"v{number}" if name.startswith("val_") else name
    return [
        f"{names[n.outputs[0].name or '']} = {n.op_type}"
        f"({', '.join(names.get(v.name or '', v.name or '') for v in n.inputs if v)})"
        for n in model.graph
    ]


def test_before_and_after_blocks_one_after_the_other() -> None:
    """Block 0 is judged alone, block 1 is gated and judged, block 2 is gated."""
    lines = gated("similarity=0.5,first=0,last=0", small(blocks=3))
    assert lines[9:17] == [
        "x1 = Add(m0, mlp0)",
        "v10 = Mul(m0, x1)",
        "v11 = ReduceSum(v10, int64.1d.-1)",
        "v12 = ReduceL2(m0, int64.1d.-1)",
        "v13 = ReduceL2(x1, int64.1d.-1)",
        "v14 = Mul(v12, v13)",
        "v15 = Mul(v14, gate.similarity)",
        "v16 = GreaterOrEqual(v11, v15)",
    ]
    assert lines[32:36] == [
        "v32 = GreaterOrEqual(v27, v31)",
        "v33 = Or(v16, v32)",
        "v34 = Where(v16, m1, x2)",
        "normed2 = RMSNormalization(v34, scale)",
    ]
    assert lines[43:] == [
        "x3 = Add(m2, mlp2)",
        "v44 = Where(v33, m2, x3)",
        "last = RMSNormalization(v44, scale)",
        "logits = MatMul(last, head)",
        "v47 = Concat(v16, v33)",
        "v48 = Cast(v47)",
        "skipped = ReduceSum(v48, int64.1d.-1)",
    ]


def test_side_by_side_the_stream_without_the_mlp_is_made() -> None:
    lines = gated("similarity=0.5,first=0,last=0", small(SIDE_BY_SIDE))
    assert any(line.endswith("= Add(x0, added0)") for line in lines)
    assert sum("= Where" in line for line in lines) == 1


def test_blocks_at_both_ends_are_left_alone() -> None:
    model = small(blocks=6)
    gated("similarity=0.5,first=1,last=2", model)
    ends = {str(n.metadata_props.get("graftline.gate")) for n in model.graph} - {"None"}
    assert ends == {"2", "3"}
    assert [n.op_type for n in model.graph].count("GreaterOrEqual") == 2


def definition(spec: TinyDecoder, tokens: np.ndarray, similarity: float, region: range) -> Feed:
    """Logits and counts of one sequence, row by row and block by block: which MLPs are left out is
    decided by the stream of a host in which all MLPs left out until then add nothing."""
    rows = tokens.shape[1]
    keep = np.ones((spec.layers, 1, rows, 1), np.float32)
    out = np.zeros(rows, np.bool_)
    for block in region:
        keep[block, 0, out, 0] = 0
        found = run(silenced(spec, keep), {"tokens": tokens, "positions": np.arange(rows)[None]})
        mid, full = found[f"mid.{block}"][0], found[f"full.{block}"][0]
        lengths = np.linalg.norm(mid, axis=-1) * np.linalg.norm(full, axis=-1)
        out |= ((mid * full).sum(-1) >= similarity * lengths) & ~out
    counts = (keep == 0).sum(0)[0, :, 0]
    feed = {"tokens": tokens, "positions": np.arange(rows)[None]}
    return {"logits": run(silenced(spec, keep), feed)["logits"], "skipped": counts[None]}


@pytest.mark.parametrize(
    "spec",
    [TinyDecoder(layers=5), TinyDecoder(layers=4, window=3), TinyDecoder(layers=4, alibi=True)],
    ids=["grouped", "window", "alibi"],
)
def test_rows_pass_by_as_the_method_says(spec: TinyDecoder) -> None:
    """Behind other grafts, lowered, MLPs on rows left; all laws, and a definition of our own."""
    tokens = np.random.default_rng(3).integers(0, 61, (1, 24))
    region, similarity = range(1, spec.layers), 0.9
    expected = definition(spec, tokens, similarity, region)
    assert len(set(expected["skipped"][0].tolist())) > 1
    graft = f"gate-mlp{{similarity={similarity},first=1,last=0}}"
    model = spec.build()
    infer_shapes(model)
    feed: Feed = {"tokens": tokens, "positions": np.arange(24)[None]}
    text = f"{GRAFTED} | {graft} | pack-projections | lower-ort | select-mlp-rows"
    pipeline = Pipeline.parse(text, GRAFTS)
    pipeline.run(model, feed)
    for each in pipeline.grafts:
        feed = each.neutral(feed, model)
    got = run(model, feed)
    assert got["skipped"].tolist() == expected["skipped"].tolist()
    best = np.take_along_axis(expected["logits"], got["topk_ids"], -1)
    np.testing.assert_allclose(got["topk_logits"], best, rtol=1e-3, atol=1e-4)
    assert {p.layer for p in read_ports(model) if p.mirror} == set(range(spec.layers))


def test_a_row_is_judged_by_itself() -> None:
    """Rows of a batch pass by what they pass by alone."""
    model = TinyDecoder(layers=4).build()
    infer_shapes(model)
    pipeline = Pipeline.parse("anchors | gate-mlp{similarity=0.9,first=0,last=0}", GRAFTS)
    pipeline.run(model)
    feed = decoder_feed(61, batch=3)
    whole = run(model, feed)
    for row in range(3):
        alone = run(model, {name: array[row : row + 1] for name, array in feed.items()})
        assert np.array_equal(alone["skipped"][0], whole["skipped"][row])
    assert 0 < whole["skipped"].mean() < 3


def test_a_similarity_that_nothing_reaches_is_the_host() -> None:
    model, host = small(blocks=3), small(blocks=3)
    gated("similarity=0.5,first=0,last=0", model)
    got = run(with_similarity(model, 2), FEED)
    assert np.array_equal(got["logits"], run(host, FEED)["logits"])
    assert not got["skipped"].any()


REFUSED: Mapping[str, str] = {
    "similarity=1": "a similarity is a cosine; use one between -1 and 1",
    "first=2,last=1": "of 4 blocks, without the first 2 and the last 1, fewer than two are left",
    "first=-1": "use a smaller first or last",
    "speedup=1.1,first=0,last=0": "has no text of the host; give a similarity in place",
    "speedup=1.1,similarity=0.9": "speedup chooses the similarity; give one of them",
}


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_gates_that_cannot_be_are_refused(options: str) -> None:
    with pytest.raises(NotApplicable, match=REFUSED[options]) as caught:
        gated(options, small(blocks=4))
    assert "\n" not in str(caught.value)


def test_hosts_that_cannot_be_gated_are_refused() -> None:
    with pytest.raises(NotApplicable, match="run anchors first"):
        GateMlp().requires(small())
    with pytest.raises(NotApplicable, match="cannot gate the MLP of block 1; leave the block out"):
        gated("first=1,last=0", small(BEHIND_A_NORM, 3))
    twice = " | ".join(["anchors", *["gate-mlp{first=0,last=0}"] * 2])
    with pytest.raises(NotApplicable, match="are gated already"):
        Pipeline.parse(twice, GRAFTS).run(small(blocks=3))


def test_the_law_sees_another_similarity() -> None:
    class Wrong(GateMlp):
        def apply(self, model: ir.Model) -> None:
            GateMlp(0.7, self.first, self.last).apply(model)

    model = small(blocks=3)
    Pipeline.parse("anchors", GRAFTS).run(model)
    with pytest.raises(LawBroken, match=r"'gated' at the similarity: is 0.7 in the graph, not 0.5"):
        Pipeline((Wrong(0.5, 0, 0),)).run(model, FEED)
