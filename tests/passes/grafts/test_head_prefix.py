"""head-prefix: the layer in front of draft heads in the host's step, as PyTorch's own says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.build.head_within import graph_within
from graftline.errors import CheckpointError, LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.models.decoder import TinyDecoder
from graftline.models.heads import open_head
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts import head_prefix
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import new_output
from graftline.ports import FEATURES, read_ports
from tests.hydra_files import write_prefixed
from tests.models.heads.reference_layers import Sizes
from tests.passes.tiny_hosts import decoder_feed, host

SPEC = TinyDecoder()
SIZES = Sizes(hidden=32, heads=4, kv_heads=2, head_size=16, mlp=40, theta=100.0)
CACHED = "kv-cache | tree-mask | select-rows | head-prefix | reduce-logits{topk=4}"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix") / "head"
    write_prefixed(folder, SIZES)
    return folder


def anchored(spec: TinyDecoder = SPEC) -> ir.Model:
    model = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(model)
    return model


def carrying(head: Path) -> ir.Model:
    """An anchored host that carries the layer of a head."""
    model = anchored()
    model.meta[HEADS] = graph_within(open_head(head), model)
    return model


@pytest.mark.parametrize("offset", [0, 1], ids=["final-norm", "before-the-last-block"])
def test_a_host_before_and_after(tmp_path: Path, offset: int) -> None:
    """Features are PyTorch's of the state that `hidden_state_offset` names; all else is as it was.
    """
    module = write_prefixed(tmp_path / "head", SIZES, hidden_state_offset=offset)
    model = carrying(tmp_path / "head")
    plain, feed = model.clone(), decoder_feed(61)
    (norm,) = with_role(plain.graph, "final_norm")
    source = block_outputs(plain.graph)[-2] if offset else norm.outputs[0]
    new_output(plain.graph, source, "source", ir.DataType.FLOAT, ["B", "N", 32])
    reports = Pipeline.parse(CACHED, GRAFTS).run(model, feed)
    report = next(r for r in reports if r.text.startswith("head-prefix"))
    laws = {row.law: row for row in report.laws}
    assert {"neutral", "prefixed"} <= set(laws)
    assert "branches equal their chains" in laws["prefixed"].what
    assert (report.added["Attention"], report.added["RMSNormalization"]) == (1, 3)
    own = {p.name for p in read_ports(model) if p.mirror and p.name.startswith("adapter.")}
    assert own == {"adapter.key.out", "adapter.value.out"}
    before = run(plain, feed)
    with torch.no_grad():
        wanted = module.prefix_embeding_layer(torch.from_numpy(before["source"])).numpy()
    fed = feed
    for graft in Pipeline.parse(CACHED, GRAFTS).grafts:
        fed = graft.neutral(fed, model)
    got = run(model, fed)
    # sums of 32 and 40 numbers in another order
    np.testing.assert_allclose(got[FEATURES], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["logits"], before["logits"], rtol=1e-4, atol=1e-4)


def test_the_layer_is_lowered_as_a_block_is(head: Path) -> None:
    """One attention over a cache more, in chains and in packed rows."""
    counts: list[int] = []
    plain = "kv-cache | select-rows | reduce-logits{topk=4} | pack-projections | lower-ort"
    grafted = plain.replace("reduce", "head-prefix | reduce")
    for text in (plain, grafted):
        model = carrying(head)
        Pipeline.parse(text, GRAFTS).run(model, decoder_feed(61))
        counts.append(sum(node.op_type == "GroupQueryAttention" for node in model.graph))
    assert counts == [2, 3]
    text = f"{grafted} | pack-rows{{sequences=2}}"
    reports = Pipeline.parse(text, GRAFTS).run(carrying(head), decoder_feed(61))
    assert {row.law: row.status for row in reports[-1].laws}["together"] == "held"


def test_a_layer_that_reads_another_state_is_caught(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = head_prefix.write_rows

    def spoiled(model: ir.Model, emit: Any, own: Any, stream: Any, layer: int) -> Any:
        return real(model, emit, own, block_outputs(model.graph)[layer], layer)

    monkeypatch.setattr(head_prefix, "write_rows", spoiled)
    with pytest.raises(LawBroken, match="prefixed"):
        Pipeline.parse(CACHED, GRAFTS).run(carrying(head), decoder_feed(61))


REFUSED = [
    ("kv-cache | head-features", "needs a head that reads hidden states of certain layers"),
    ("kv-cache | adapter-cache{blocks=1}", "needs an adapter that was trained behind an exit"),
    ("head-prefix", "writes a cache beside the host's; put kv-cache before it"),
    ("kv-cache | head-prefix | head-prefix", "has the cache of an adapter already"),
    ("kv-cache | tap{layers=norm} | draft-heads", "needs heads that read nothing but a state"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_refusals(head: Path, text: str, message: str) -> None:
    with pytest.raises(NotApplicable, match=message) as caught:
        Pipeline.parse(text, GRAFTS).run(carrying(head))
    assert "\n" not in str(caught.value)


def test_without_such_heads_it_says_what_it_needs() -> None:
    with pytest.raises(NotApplicable, match="head-prefix needs draft heads behind a decoder layer"):
        Pipeline.parse("kv-cache | head-prefix", GRAFTS).run(anchored())


def test_hosts_of_another_kind_are_refused(head: Path) -> None:
    with pytest.raises(CheckpointError, match="and this host has no rotary positions"):
        graph_within(open_head(head), anchored(replace(SPEC, alibi=True)))
