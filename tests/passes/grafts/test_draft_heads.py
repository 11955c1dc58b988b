"""draft-heads: one product a layer for all heads, on a host and as a graph of its own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.head_graph import head_graphs
from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.models.decoder import TinyDecoder
from graftline.models.heads.files import read_files
from graftline.models.heads.medusa import open_medusa
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts import draft_heads
from graftline.passes.grafts.draft_heads import DraftHeads
from graftline.passes.grafts.head_parts import HEADS
from graftline.ports import read_ports
from tests.medusa_files import seeded, write_safe
from tests.passes.tiny_hosts import HOSTS, decoder_feed, host

HIDDEN, VOCABULARY = 32, 61
FORMS = {"v1": (1, True), "deep": (3, True), "v2": (1, False)}


@pytest.fixture(params=FORMS, scope="module")
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    layers, own = FORMS[request.param]
    return graph_of(tmp_path_factory.mktemp("head"), layers, own)


def graph_of(
    folder: Path, layers: int = 1, own: bool = True, spec: TinyDecoder = HOSTS["grouped"]
) -> ir.Model:
    tensors = seeded(HIDDEN, VOCABULARY, 4, layers, own)
    target = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(target)
    return head_graphs(open_medusa(read_files(write_safe(folder / "head", tensors))), target)[0]


def states() -> Feed:
    return {"hidden": np.random.default_rng(3).standard_normal((2, 5, HIDDEN)).astype(np.float32)}


def test_every_layer_is_one_product(published: ir.Model) -> None:
    before, after = published, published.clone()
    DraftHeads(topk=4).apply(after)
    was, now = (Counter(n.op_type for n in m.graph)["MatMul"] for m in (before, after))
    names = before.graph.initializers
    layers = sum(re.fullmatch(r"head\.0\.layer\.\d+\.weight", name) is not None for name in names)
    shared = "target.lm_head.weight" in names
    assert was == 4 * layers + 4
    assert now == layers + (1 if shared else 4), "a matrix of its own is read by its head alone"


def test_before_and_after_on_its_own_graph(published: ir.Model) -> None:
    before, after = published, published.clone()
    reports = Pipeline.parse("draft-heads{topk=4} | lower-ort", GRAFTS).run(after, states())
    assert {"neutral", "head-formula"} <= {row.law for row in reports[0].laws}
    was, now = run(before, states()), run(after, states())
    logits = was["heads.logits"]
    assert logits.shape == (2, 5, 4, VOCABULARY)
    best = np.argsort(-logits, axis=-1)[..., :4]
    np.testing.assert_array_equal(now["heads.topk_ids"], best)
    expected = np.take_along_axis(logits, best, -1)
    np.testing.assert_allclose(now["heads.topk_logits"], expected, rtol=0, atol=1e-5)
    ports = {p.name: (p.role, p.owner, p.direction, p.shape) for p in read_ports(after)}
    assert ports["hidden"] == ("hidden", "head.0", "in", ("B", "N", HIDDEN))
    assert ports["heads.topk_ids"] == ("heads.topk_ids", "head.0", "out", ("B", "N", 4, 4))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", ["grouped", "alibi", "one-block"])
def test_on_a_host_nothing_else_changes(tmp_path: Path, form: str, spec: str) -> None:
    published = graph_of(tmp_path, *FORMS[form], HOSTS[spec])
    text = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm}"
    model = host(HOSTS[spec])
    Pipeline.parse(text, GRAFTS).run(model)
    feed, before = decoder_feed(VOCABULARY), model.clone()
    for graft in Pipeline.parse(text, GRAFTS).grafts:
        feed = graft.neutral(feed, model)
    model.meta[HEADS] = published
    (report,) = Pipeline.parse("draft-heads{topk=4}", GRAFTS).run(model, feed)
    assert "head-formula" in {row.law for row in report.laws}
    was, now = run(before, feed), run(model, feed)
    for name, array in was.items():
        assert np.array_equal(array, now[name]), f"{name} is the same to the bit"
    expected = run(published, {"hidden": was["hidden.norm"]})["heads.logits"]
    scale = np.abs(expected).max()
    found = np.take_along_axis(expected, now["heads.topk_ids"], -1)
    np.testing.assert_allclose(now["heads.topk_logits"], found, rtol=0, atol=1e-5 * scale)
    largest = -np.sort(-expected, axis=-1)[..., :4]
    np.testing.assert_allclose(now["heads.topk_logits"], largest, rtol=0, atol=1e-5 * scale)


def test_a_head_that_reads_before_the_norm_breaks_its_law(
    published: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "anchors | kv-cache | tap{layers=1+norm}"
    model, feed = host(), decoder_feed(VOCABULARY)
    Pipeline.parse(text, GRAFTS).run(model)
    for graft in Pipeline.parse(text, GRAFTS).grafts:
        feed = graft.neutral(feed, model)
    model.meta[HEADS] = published
    other = next(v for v in model.graph.outputs if v.name == "hidden.1")
    monkeypatch.setattr(draft_heads, "value_of", lambda model, port: other)
    with pytest.raises(LawBroken, match=r"'head-formula' at 'heads\.topk_logits'"):
        Pipeline.parse("draft-heads{topk=4}", GRAFTS).run(model, feed)


def test_it_refuses_by_name(tmp_path: Path) -> None:
    def refused(text: str, heads: ir.Model | None, spec: TinyDecoder = HOSTS["grouped"]) -> str:
        model = host(spec)
        if heads is not None:
            model.meta[HEADS] = heads
        with pytest.raises(NotApplicable) as caught:
            Pipeline.parse(text, GRAFTS).run(model)
        return str(caught.value)

    heads, tap = graph_of(tmp_path), "anchors | kv-cache | tap{layers=norm}"
    needs = "needs heads that read nothing but a state; give them: --head PATH"
    assert needs in refused(f"{tap} | draft-heads", None)
    assert "put tap{layers=norm} before it" in refused("anchors | draft-heads", heads)
    assert "put tap{layers=norm}" in refused("anchors | tap{layers=1} | draft-heads", heads)
    assert "at least 1 candidate" in refused(f"{tap} | draft-heads{{topk=0}}", heads)
    assert "score 61 tokens" in refused(f"{tap} | draft-heads{{topk=62}}", heads)
    assert "has draft heads already" in refused(f"{tap} | draft-heads | draft-heads", heads)
    other = TinyDecoder(hidden=48)
    assert "read a state of 32, and the host's has 48" in refused(
        f"{tap} | draft-heads", heads, other
    )
