"""adapter-cache and adapter-exit: the adapter's formula in the host's graphs, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Feed, run
from graftline.facts import decoder_facts
from graftline.head_notes import AdapterNote
from graftline.models.decoder import TinyDecoder
from graftline.models.heads import open_head
from graftline.models.heads.kangaroo import THETA
from graftline.models.training.kangaroo import AdapterModule
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts.adapter import adapter_graph, rotary_tables
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import new_output
from graftline.passes.graph.weights import tensor_of
from graftline.ports import read_ports
from tests.kangaroo_files import seeded, write_kangaroo
from tests.passes.tiny_hosts import decoder_feed, host

HIDDEN, KV, VOCABULARY, POSITIONS = 32, 2, 61, 256
SPEC = TinyDecoder(layers=4)
CACHED = "kv-cache | select-rows | reduce-logits{topk=4}"
EXIT = f"{CACHED} | tap{{layers=1}} | cut-depth{{blocks=2}} | adapter-exit"
TARGET = f"{CACHED} | adapter-cache{{blocks=2}}"


@pytest.fixture(scope="module", params=[2, 4], ids=["heads-of-16", "heads-of-8"])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """GroupQueryAttention turns heads of 16 itself, and those of 8 are turned before it."""
    return opened(tmp_path_factory.mktemp("adapter"), request.param)


def opened(folder: Path, heads: int = 2, hidden: int = HIDDEN) -> ir.Model:
    tensors = seeded(hidden, heads, min(KV, heads))
    head = open_head(write_kangaroo(folder, tensors, heads, min(KV, heads), VOCABULARY))
    block = head.settings.block
    note = AdapterNote(block.heads, block.kv_heads, block.head_size, block.epsilon)
    return adapter_graph(head.tensors, note, rotary_tables(block.head_size, THETA, POSITIONS))


def carrying(adapter: ir.Model | None, spec: TinyDecoder = SPEC) -> ir.Model:
    """An anchored host that carries an adapter."""
    model = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(model)
    if adapter is not None:
        model.meta[HEADS] = adapter
    return model


def test_the_graph_is_the_formula_in_torch(tmp_path: Path) -> None:
    """By the module that training learns, whose parameters are called as in published files."""
    folder = tmp_path / "head"
    model = opened(folder, 4)
    block = open_head(folder).settings.block
    module = AdapterModule(block)
    tensors = {name: torch.from_numpy(value) for name, value in seeded(HIDDEN, 4, KV).items()}
    module.load_state_dict(tensors)
    x = np.random.default_rng(1).normal(size=(2, 9, HIDDEN)).astype(np.float32)
    positions = np.tile(np.arange(9), (2, 1))
    got = run(model, {"hidden": x, "positions": positions})["state"]
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    # sums of 32 numbers in another order
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_an_exit_before_and_after(adapter: ir.Model) -> None:
    """The lm_head scores what the adapter makes of the stream; the tap is the stream itself."""
    model = carrying(adapter)
    plain = model.clone()
    feed = decoder_feed(VOCABULARY)
    reports = Pipeline.parse(EXIT, GRAFTS).run(model, feed)
    report = reports[-1]
    assert {"neutral", "adapted"} <= {row.law for row in report.laws}
    assert report.added["Attention"] == 1
    assert report.added["RMSNormalization"] == 2
    assert not with_role(model.graph, "final_norm"), "the adapter's is in its place"
    caches = {p.name for p in read_ports(model) if p.mirror}
    owners = ("adapter", "cache.0", "cache.1")
    assert caches == {f"{owner}.{kind}.out" for owner in owners for kind in ("key", "value")}
    stream = block_outputs(plain.graph)[1]
    new_output(plain.graph, stream, "stream", ir.DataType.FLOAT, ["B", "N", HIDDEN])
    x = run(plain, feed)["stream"]
    state = run(adapter, {"hidden": x, "positions": feed["positions"]})["state"]
    (head,) = with_role(model.graph, "lm_head")
    turn = head.inputs[1].producer()  # type: ignore[union-attr]
    weight = tensor_of(head.inputs[1] if turn is None else turn.inputs[0]).numpy()  # type: ignore[arg-type]
    logits = state @ (weight if turn is None else weight.T)
    got = run(model, neutral(EXIT, model, feed))
    np.testing.assert_allclose(got["logits"], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["hidden.1"], x, rtol=1e-4, atol=1e-5)


def neutral(text: str, model: ir.Model, feed: Feed) -> Feed:
    """A feed of the grafted model."""
    for graft in Pipeline.parse(text, GRAFTS).grafts:
        feed = graft.neutral(feed, model)
    return feed


def test_the_target_fills_the_cache_and_computes_no_attention_for_it(adapter: ir.Model) -> None:
    model, plain = carrying(adapter), carrying(adapter)
    feed = decoder_feed(VOCABULARY)
    reports = Pipeline.parse(f"{TARGET} | lower-ort", GRAFTS).run(model, feed)
    Pipeline.parse(f"{CACHED} | lower-ort", GRAFTS).run(plain)
    (report,) = (r for r in reports if r.text.startswith("adapter-cache"))
    assert {"neutral", "adapter-rows"} <= {row.law for row in report.laws}

    def count(of: ir.Model, *ops: str) -> int:
        return sum(node.op_type in ops for node in of.graph)

    assert count(model, "GroupQueryAttention") == count(plain, "GroupQueryAttention") == 4
    assert count(model, "TensorScatter") == 2
    products = "MatMul", "FusedMatMul"
    assert count(model, *products) == count(plain, *products) + 1, "keys and values in one"
    added = set(model.graph.initializers) - set(plain.graph.initializers)
    assert not {"adapter.query", "adapter.output", "adapter.final_norm"} & added
    grown = decoder_facts(model).parameters - decoder_facts(plain).parameters
    assert grown > 2 * KV * HIDDEN


def test_rows_of_several_sequences_are_packed(adapter: ir.Model) -> None:
    """Law `together`: each sequence's rows of the adapter's cache are written behind its own."""
    model = carrying(adapter)
    text = f"{TARGET} | pack-projections | lower-ort | pack-rows{{sequences=4}}"
    reports = Pipeline.parse(text, GRAFTS).run(model, decoder_feed(VOCABULARY))
    laws = {row.law: row.status for row in reports[-1].laws}
    assert laws["together"] == "held"
    assert sum(node.op_type == "TensorScatter" for node in model.graph) == 8


def test_an_adapter_that_reads_another_block_is_caught(
    adapter: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftline.passes.grafts import adapter_cache

    real = adapter_cache.write_rows

    def spoiled(
        model: ir.Model, emit: object, own: object, stream: object, layer: int
    ) -> object:
        return real(model, emit, own, block_outputs(model.graph)[layer - 1], layer)  # type: ignore[arg-type]

    monkeypatch.setattr(adapter_cache, "write_rows", spoiled)
    with pytest.raises(LawBroken, match="adapter-rows"):
        Pipeline.parse(TARGET, GRAFTS).run(carrying(adapter), decoder_feed(VOCABULARY))


REFUSED = [
    ("kv-cache | adapter-cache{blocks=2}", None, "needs an adapter that was trained behind"),
    ("adapter-cache{blocks=2}", "adapter", "writes a cache beside the host's; put kv-cache before"),
    ("kv-cache | adapter-cache{blocks=5}", "adapter", "this host has 4 blocks; use 1 to 4"),
    ("kv-cache | adapter-cache", "adapter", "this host has 4 blocks; use 1 to 4"),
    (f"{TARGET} | adapter-exit", "adapter", "has the cache of an adapter already"),
    ("kv-cache | tree-mask | adapter-exit", "adapter", "drafts chains; leave tree-mask out"),
    ("kv-cache | adapter-exit", "narrow", "reads 16 numbers, and the host's hidden states have 32"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "given", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_refusals(tmp_path: Path, text: str, given: str | None, message: str) -> None:
    made = None if given is None else opened(tmp_path, hidden=16 if given == "narrow" else HIDDEN)
    with pytest.raises(NotApplicable, match=message) as caught:
        Pipeline.parse(text, GRAFTS).run(carrying(made))
    assert "\n" not in str(caught.value)
