"""Every graft on a tiny decoder: its laws hold, its refusals name what is missing, its work is
counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from graftline.build.compiled import compile_graph
from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.ports import read_ports
from tests.passes.tiny_hosts import ALL, HOSTS, decoder_feed, grafted, host
from tests.rounding import assert_same_sums


@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS.keys())
@pytest.mark.parametrize("text", [ALL, ALL.replace("tree-mask | ", "")], ids=["tree", "chain"])
def test_every_law_holds_on_every_kind_of_host(spec: TinyDecoder, text: str) -> None:
    reports = Pipeline.parse(text, GRAFTS).run(host(spec), decoder_feed(61))
    assert [r.text.partition("{")[0] for r in reports] == [
        p.strip().partition("{")[0] for p in text.split("|")
    ]
    for report in reports:
        assert {"typed", "wellformed", "interface", "neutral"} <= {r.law for r in report.laws}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv-cache", "run anchors first"),
        ("anchors | tree-mask", "put kv-cache before it"),
        ("anchors | kv-cache | kv-cache", "already has a cache"),
        ("anchors | kv-cache | tree-mask | tree-mask", "already has a tree mask"),
        ("anchors | tap{layers=2}", "no layer '2'; this host has blocks 0 to 1"),
        ("tap{layers=0}", "run anchors first"),
        ("anchors | tap{layers=1+-1}", "names one layer twice"),
        ("reduce-logits{topk=1}", "topk=0 (none) or at least 2"),
        ("reduce-logits | reduce-logits", "already reduced"),
        ("select-rows", "run anchors first"),
        ("pack-projections", "run anchors first"),
    ],
)
def test_grafts_refuse_by_name(text: str, message: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        grafted(text)
    assert message in str(caught.value)


def test_kv_cache_before_and_after() -> None:
    before, after = host(), grafted("anchors | kv-cache")
    assert Counter(n.op_type for n in before.graph)["TensorScatter"] == 0
    assert Counter(n.op_type for n in after.graph)["TensorScatter"] == 4
    cache = [p for p in read_ports(after) if p.role == "cache.key" and p.direction == "in"]
    assert [(p.name, p.shape, p.layer) for p in cache] == [
        ("cache.0.key", ("B", 2, "S", 16), 0),
        ("cache.1.key", ("B", 2, "S", 16), 1),
    ]


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


def test_pass_time_is_linear_in_nodes_not_layers_squared() -> None:
    """Counts work, not seconds: the graph of 12 blocks is exactly 6 times the block of 2, plus
    ends."""
    counts = [len(grafted(ALL, TinyDecoder(layers=n)).graph) for n in (2, 4, 12)]
    assert counts[2] - counts[1] == 4 * (counts[1] - counts[0])
