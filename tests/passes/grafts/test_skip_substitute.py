"""refresh-state and skip-substitute: states kept, holes hidden, blocks stood in for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import decoder_facts
from graftline.head_notes import LowRankNote
from graftline.models.decoder import TinyDecoder
from graftline.models.heads import open_head
from graftline.models.training.lora_drop import Corrections
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts import refresh_state, skip_substitute
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.grafts.low_rank import corrections_graph
from graftline.passes.graph.cut import elements
from graftline.ports import read_ports
from tests.lora_drop_files import seeded, write_lora_drop
from tests.passes.tiny_hosts import decoder_feed, host

HIDDEN, VOCABULARY, BLOCKS = 32, 61, 4
SPEC = TinyDecoder(layers=BLOCKS)
CACHED = "kv-cache | select-rows | reduce-logits{topk=4}"
WHOLE = f"{CACHED} | refresh-state"
LIGHT = f"{WHOLE} | skip-substitute"


@pytest.fixture
def corrections(tmp_path: Path) -> ir.Model:
    return opened(tmp_path)


def opened(folder: Path, layers: tuple[int, ...] = (1, 2), hidden: int = HIDDEN) -> ir.Model:
    blocks = max(BLOCKS, *(layer + 1 for layer in layers))
    files = write_lora_drop(folder / "head", seeded(layers, hidden), blocks, 8.0)
    head = open_head(files)
    return corrections_graph(head.tensors, LowRankNote(head.settings.layers))


def carrying(corrections: ir.Model | None, spec: TinyDecoder = SPEC) -> ir.Model:
    """An anchored host that carries corrections."""
    model = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(model)
    if corrections is not None:
        model.meta[HEADS] = corrections
    return model


def test_the_graph_is_the_formula_in_torch(corrections: ir.Model) -> None:
    """By the module that training learns."""
    module, tensors = Corrections((1, 2), HIDDEN, 4), seeded((1, 2), HIDDEN)
    with torch.no_grad():
        for given, values in ((module.down, list(tensors.values())[::2]),
                              (module.up, list(tensors.values())[1::2])):  # fmt: skip
            for parameter, value in zip(given, values, strict=True):
                parameter.copy_(torch.from_numpy(value))
    x = np.random.default_rng(1).normal(size=(2, 9, HIDDEN)).astype(np.float32)
    got = run(corrections, {"stream.1": x, "stream.2": x})
    for place, layer in enumerate((1, 2)):
        with torch.no_grad():
            wanted = module(torch.from_numpy(x), place).numpy()
        np.testing.assert_allclose(got[f"correction.{layer}"], wanted, rtol=1e-4, atol=1e-5)


def test_a_whole_step_before_and_after(corrections: ir.Model) -> None:
    """It keeps the states and hides holes; what it answers is the host's."""
    model = carrying(corrections)
    reports = Pipeline.parse(WHOLE, GRAFTS).run(model, decoder_feed(VOCABULARY))
    report = reports[-1]
    assert {row.law: row.status for row in report.laws}.items() >= {
        ("neutral", "held"), ("refreshed", "held"), ("held", "held"),
    }  # fmt: skip
    assert report.added == {
        "And": 1, "Concat": 2, "Expand": 1, "GatherND": 2, "Greater": 1, "Shape": 2, "Slice": 2,
        "TensorScatter": 1, "Transpose": 1, "Unsqueeze": 4,
    }  # fmt: skip
    shapes = {p.role: (p.shape, p.state) for p in read_ports(model) if p.direction == "in"}
    assert shapes["refreshed"] == (("B", 2, 1, HIDDEN), "running")
    assert shapes["held"] == (("B", 1, "S", 1), "slots")


def test_a_light_step_before_and_after(corrections: ir.Model) -> None:
    """Two of four blocks go with their weights and caches; two small products each stand in."""
    model, plain = carrying(corrections), carrying(corrections)
    Pipeline.parse(WHOLE, GRAFTS).run(plain)
    (report,) = Pipeline.parse(LIGHT, GRAFTS).run(model, decoder_feed(VOCABULARY))[-1:]
    assert {"substituted"} <= {row.law for row in report.laws if row.status == "held"}

    def count(of: ir.Model, op: str) -> int:
        return sum(node.op_type == op for node in of.graph)

    assert (count(plain, "Attention"), count(model, "Attention")) == (4, 2)
    assert count(plain, "MatMul") - count(model, "MatMul") == 2 * 7 - 2 * 2
    caches = {p.layer for p in read_ports(model) if p.role == "cache.key"}
    assert caches == {0, 3}
    assert elements(model) < 0.6 * elements(plain)
    assert decoder_facts(model).layers == 2


def test_blocks_behind_corrections_are_lowered_as_all_others(tmp_path: Path) -> None:
    """The norm behind a sum with a state is fused as that behind any other."""
    model = carrying(opened(tmp_path, (1,)), TinyDecoder(layers=5))
    text = f"{LIGHT} | pack-projections | lower-ort"
    reports = Pipeline.parse(text, GRAFTS).run(model, decoder_feed(VOCABULARY))
    laws = {row.law: row.status for row in reports[-1].laws}
    assert (laws["neutral"], laws["alike"]) == ("held", "held")
    plain = [node for node in model.graph if node.op_type == "RMSNormalization"]
    assert len(plain) == 1, "the first, which follows the embedding"


def test_windows_and_biases_hide_holes_too(tmp_path: Path) -> None:
    for spec in (TinyDecoder(layers=3, window=3), TinyDecoder(layers=3, alibi=True)):
        model = carrying(opened(tmp_path, (1,)), spec)
        passes = Pipeline.parse(f"{WHOLE} | lower-ort", GRAFTS)
        reports = passes.run(model, decoder_feed(VOCABULARY))
        laws = {(r.text, row.law): row.status for r in reports for row in r.laws}
        assert laws["refresh-state", "held"] == "held"
        assert laws["lower-ort", "neutral"] == "held"


def test_a_light_step_that_says_it_holds_its_slots_is_caught(
    corrections: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = skip_substitute.step_flags

    def ones(model: ir.Model, emit: object, flag: float) -> object:
        return real(model, emit, 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(skip_substitute, "step_flags", ones)
    with pytest.raises(LawBroken, match="blocks which are passed by hold a slot"):
        Pipeline.parse(LIGHT, GRAFTS).run(carrying(corrections), decoder_feed(VOCABULARY))


def test_a_mask_that_shows_holes_is_caught(
    corrections: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(emit: object, mask: ir.Value, written: ir.Value) -> ir.Value:
        return mask

    monkeypatch.setattr(refresh_state, "_without_holes", shown)
    with pytest.raises(LawBroken, match=r"refresh-state breaks the law 'held'"):
        Pipeline.parse(WHOLE, GRAFTS).run(carrying(corrections), decoder_feed(VOCABULARY))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    one, all_of = opened(tmp_path / "one", (1,)), opened(tmp_path / "all", (0, 1, 2, 3))
    cases = (
        (None, WHOLE, "needs low-rank corrections that were trained for this host"),
        (opened(tmp_path / "narrow", (1,), 16), WHOLE, "read 16 numbers, and .* have 32"),
        (opened(tmp_path / "deep", (1, 9)), WHOLE, "block 9 too, and this host has blocks 0 to 3"),
        (all_of, WHOLE, "all 4 blocks leave none"),
        (one, "refresh-state", "put kv-cache before"),
        (one, "kv-cache | refresh-state", "put select-rows before"),
        (one, "kv-cache | tree-mask | select-rows | refresh-state", "leave tree-mask out"),
        (one, f"{WHOLE} | refresh-state", "keeps such states already"),
        (one, f"{CACHED} | skip-substitute", "put refresh-state before it"),
        (one, f"{WHOLE} | lower-ort{{provider=cuda}}", "'refreshed' is a running state"),
    )  # fmt: skip
    for corrections, text, message in cases:
        with pytest.raises(NotApplicable, match=message):
            Pipeline.parse(text, GRAFTS).run(carrying(corrections))
