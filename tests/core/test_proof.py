"""The laws of a whole bundle: what they compare, and the faults that break them at `optimize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import LawBroken
from graftline.facts import DecoderFacts, decoder_facts
from graftline.kinds.decoder.probe import make_probe
from graftline.law import LawRow
from graftline.models import checkpoint
from graftline.models.decoder import TinyDecoder
from graftline.models.export import stamp
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Host
from graftline.models.tiny import tiny
from graftline.nearness import LEAST, gaps, limit, spread_gaps
from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.constants import Constants, constants
from graftline.passes.graph.emit import Emit
from graftline.passes.lower.ort.lower import LowerOrt
from graftline.passes.lower.quantize import quantize

BLOCKS = 4
WINDOW = 40
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": BLOCKS}
Fault = Callable[[ir.Model], None]


@dataclass(frozen=True)
class Ready:
    """A checkpoint that was read before."""

    path: Path
    ready: Host

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        return self.ready


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("proof") / "llama", **SHAPE)


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Host:
    return HfCheckpoint(llama_folder).host()


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("proof") / "mistral"
    return HfCheckpoint(tiny("mistral", folder, **SHAPE, sliding_window=WINDOW)).host()


@pytest.fixture
def proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[Any, LawRow]]:
    """Optimizes a host; the laws of its bundle by what and law."""

    def run(host: Host, **options: Any) -> dict[Any, LawRow]:
        ready = Ready(tmp_path, host)
        monkeypatch.setattr(checkpoint, "open_checkpoint", lambda path: ready)
        bundle: Bundle = optimize("host", tmp_path / "out", **options)
        return {(law.graft, law.law): law for law in bundle.manifest.laws}

    return run


def lowered_with(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Lowering of the whole host, not of the reduced one, has a fault."""
    real = LowerOrt.apply

    def apply(self: LowerOrt, model: ir.Model) -> None:
        real(self, model)
        if len(with_role(model.graph, "attention")) == BLOCKS:
            fault(model)

    monkeypatch.setattr(LowerOrt, "apply", apply)


def change(value: ir.Value | None, array: Callable[[Any], Any]) -> None:
    assert value is not None
    assert value.const_value is not None
    new = array(value.const_value.numpy().copy())
    value.const_value = ir.tensor(new, name=value.name)


def zeroed_head(model: ir.Model) -> None:
    head = next(n for n in with_role(model.graph, "lm_head"))
    change(head.inputs[1], np.zeros_like)


def late_rotary(model: ir.Model) -> None:
    node = with_role(model.graph, "attention")[0]

    def off_by_one(table: Any) -> Any:
        table[30:] = table[29:-1].copy()
        return table

    for table in node.inputs[7:9]:
        change(table, off_by_one)


def by_row_order(model: ir.Model) -> None:
    """Queries and keys are turned by the slot of a row, not by its depth in the tree."""
    nodes = with_role(model.graph, "attention")
    emit = Emit(model.graph, "fault", nodes[0], block="shared")
    inputs = {v.name: v for v in model.graph.inputs}
    count = emit.op("Squeeze", [emit.op("Shape", [inputs["tokens"]], start=1, end=2)])
    zero, one = emit.const("fault.0", 0, np.int64), emit.const("fault.1", 1, np.int64)
    rows = emit.op("Range", [zero, count, one])
    axis = emit.const("fault.axis", [1], np.int64)
    slots = emit.op("Add", [emit.op("Unsqueeze", [inputs["write_index"], axis]), rows])
    for node in nodes:
        node.replace_input_with(9, slots)


def widened(size: int) -> Fault:
    def fault(model: ir.Model) -> None:
        for node in with_role(model.graph, "attention"):
            assert node.attributes["local_window_size"].as_int() == WINDOW
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", size)

    return fault


def test_a_sound_host_is_held_to_every_comparison(
    llama: Host, proven: Callable[..., dict[Any, LawRow]]
) -> None:
    laws = proven(llama, passes="kv-cache | tree-mask | tap{layers=1+-1+norm}")
    whole, own, taps = (laws[key] for key in (
        ("ort-cpu", "whole"), ("export", "checkpoint"), ("ort-cpu", "taps")))  # fmt: skip
    for way in ("a prompt in chunks", "single rows", "a tree", "a kept path", "a batch of two"):
        assert way in whole.what
    assert (whole.status, own.status, taps.status) == ("held",) * 3
    for law in (whole, own, taps):
        assert law.value is not None
        assert law.limit is not None
        assert 0 <= law.value <= law.limit < 1e-4
    assert "hidden.1, hidden.3, hidden.norm" in taps.what
    assert laws["ort-cpu", "row-invariant"].status == "measured"


def test_without_a_checkpoint_the_law_says_that_it_did_not_run(
    llama: Host, proven: Callable[..., dict[Any, LawRow]]
) -> None:
    laws = proven(replace(llama, own=None), passes="kv-cache | tap{layers=0}", recipe="plain")
    assert laws["export", "checkpoint"].status == "not_run"
    assert laws["canonical", "whole"].status == "held", "taps are compared with the canonical's"
    assert laws["ort-cpu", "taps"].status == "held"
    told = "the checkpoint is too large"
    laws = proven(replace(llama, own=lambda feed, say: told), recipe="plain")
    assert laws["export", "checkpoint"].what == told


@pytest.mark.parametrize("fault", [zeroed_head, late_rotary, by_row_order])
def test_faults_in_lowering_are_caught(
    fault: Fault, llama: Host, proven: Callable[..., dict[Any, LawRow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lowered_with(monkeypatch, fault)
    with pytest.raises(LawBroken, match=r"law '(whole|tables)'") as broken:
        proven(llama, recipe="token-recycling")
    assert ("a tree" in str(broken.value)) == (fault is by_row_order)


@pytest.mark.parametrize("size", [41, 80, 39])
def test_another_window_is_caught(
    size: int, mistral: Host, proven: Callable[..., dict[Any, LawRow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lowered_with(monkeypatch, widened(size))
    with pytest.raises(LawBroken, match="law 'whole'"):
        proven(mistral, recipe="plain")


def test_a_tap_of_another_layer_is_caught(
    llama: Host, proven: Callable[..., dict[Any, LawRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(model: ir.Model) -> None:
        taps = {v.name: v.producer() for v in model.graph.outputs}
        node, other = taps["hidden.2"], taps["hidden.1"]
        assert node is not None
        assert other is not None
        node.replace_input_with(0, other.inputs[0])

    lowered_with(monkeypatch, fault)
    with pytest.raises(LawBroken, match=r"'taps' at 'hidden\.2'"):
        proven(llama, passes="kv-cache | tap{layers=1+2}", recipe="plain")


def test_another_layers_weight_in_a_stamped_layer_is_caught(
    llama_folder: Path, proven: Callable[..., dict[Any, LawRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stamp.Layers.rename

    def rename(self: Any, name: str, layer: int) -> str:
        return real(self, name, 2 if layer == 3 and "down_proj" in name else layer)

    monkeypatch.setattr(stamp.Layers, "rename", rename)
    with pytest.raises(LawBroken, match="law 'checkpoint'"):
        proven(HfCheckpoint(llama_folder).host(), recipe="plain")


def test_another_epsilon_in_a_stamped_layer_is_caught(
    llama_folder: Path, proven: Callable[..., dict[Any, LawRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HfCheckpoint(llama_folder).host()
    norms = [n for n in host.model.graph if n.op_type == "RMSNormalization"]
    assert len(norms) == 2 * BLOCKS + 1
    was = norms[-2].attributes["epsilon"].as_float()
    norms[-2].attributes["epsilon"] = ir.AttrFloat32("epsilon", 100 * was)
    with pytest.raises(LawBroken, match="law 'checkpoint'"):
        proven(host, recipe="plain")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("what", ["scales", "zeros", "rows"])
def test_garbage_in_two_quantized_blocks_is_caught(
    dtype: str, what: str, llama: Host, proven: Callable[..., dict[Any, LawRow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = quantize._register

    def register(graph: Any, name: str, packed: Any, source: Any) -> Any:
        if "layers.2." in name or "layers.3." in name:
            array = getattr(packed, what if what != "rows" else "data")
            packed = replace(packed, **{what if what != "rows" else "data": array[::-1].copy()})
        return real(graph, name, packed, source)

    monkeypatch.setattr(quantize, "_register", register)
    with pytest.raises(LawBroken, match=r"law 'closeness' at '.*layers\.2\."):
        proven(llama, recipe="plain", dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantized_engine_must_be_near_the_export(
    dtype: str, llama: Host, proven: Callable[..., dict[Any, LawRow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    laws = proven(llama, recipe="plain", dtype=dtype)
    for graft, law in (("canonical", "whole"), ("ort-cpu", "whole")):
        assert laws[graft, law].status == "held"
        assert (laws[graft, law].limit or 1) < (1e-4 if graft == "canonical" else 1)

    def fault(model: ir.Model) -> None:
        for node in [n for n in model.graph if n.op_type == "MatMulNBits"][1:]:
            change(node.inputs[2], lambda scales: scales[..., ::-1].copy() * 3)

    lowered_with(monkeypatch, fault)
    with pytest.raises(LawBroken, match=f"law 'whole' at {dtype} logits"):
        proven(llama, recipe="plain", dtype=dtype)


def test_constants_of_masks_and_tokens_are_found(mistral: Host) -> None:
    found = constants(mistral.model)
    assert WINDOW in found.distances
    assert found.tables == {96}, "the embedding alone is looked up"


FACTS = DecoderFacts(50, 64, 2, 4, 4, 16, 0)


def answer(tokens: Any) -> Any:
    return np.cos(tokens[:, None] * np.arange(1, 51) + np.arange(len(tokens))[:, None])


def test_sequences_pass_every_constant_and_hold_every_token() -> None:
    probe = make_probe(answer, Constants({40, 90, 3000}, {7, 49, 50}), FACTS)
    assert len(probe.main.tokens) == 98
    assert {7, 49} <= set(probe.main.tokens.tolist())
    assert "constants not reached: 3000" in probe.why
    assert all(len(b.tokens) == 98 for b in probe.branches)
    bounded = make_probe(answer, Constants({40}, set(), {30}), FACTS)
    assert len(bounded.main.tokens) == 30


def test_an_export_of_last_rows_is_run_at_several_lengths() -> None:
    probe = make_probe(lambda tokens: answer(tokens)[-1:], Constants(), FACTS)
    assert len(probe.main.rows) == 8
    rows = np.asarray([62, 63])
    places, logits = probe.main.of(rows)
    assert places.tolist() == [1]
    np.testing.assert_array_equal(logits, answer(probe.main.tokens)[63:])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_to_compare_is_an_error(value: float) -> None:
    with pytest.raises(LawBroken, match="the export's own are"):
        make_probe(lambda tokens: np.full((len(tokens), 50), value), Constants(), FACTS)


def test_what_is_not_finite_is_far() -> None:
    rows = np.asarray([[1.0, -2.0, -1e30], [1.0, 2.0, -np.inf]])
    assert gaps(rows, rows).tolist() == [0, 0]
    for bad in (np.nan, np.inf, -np.inf):
        other = rows.copy()
        other[0, 1] = bad
        assert gaps(other, rows)[0] == np.inf
        assert gaps(rows, other)[0] == np.inf
        assert not spread_gaps(other, rows)[0] <= 1.5
    assert gaps(rows * 1.5, rows)[0] == pytest.approx(0.5)
    assert spread_gaps(np.zeros_like(rows) + 3, np.arange(6.0).reshape(2, 3))[0] == 1


def test_limits_follow_the_size_of_the_sums() -> None:
    wide, deep = (replace(FACTS, hidden=2304, layers=layers) for layers in (26, 52))
    assert limit("fp32", FACTS) == LEAST < limit("fp32", wide) < limit("fp32", deep) < 3e-4
    assert limit("fp32", FACTS) < limit("fp16", FACTS) < limit("bf16", FACTS) < 0.1


def test_a_decoder_without_a_checkpoint_runs_its_laws(
    proven: Callable[..., dict[Any, LawRow]],
) -> None:
    model = TinyDecoder(layers=BLOCKS, window=24, positions=128).build()
    laws = proven(Host(model, decoder_facts(model)), recipe="token-recycling")
    assert laws["ort-cpu", "whole"].status == "held"


def test_a_saved_program_is_run_by_torch() -> None:
    from graftline.models.reference import Own, program_model

    torch = pytest.importorskip("torch")

    class Program(torch.nn.Module):
        def forward(self, ids: Any, mask: Any) -> Any:
            return torch.nn.functional.one_hot(ids * mask, 9).float()

    example = (torch.ones(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.int64))
    program = torch.export.export(Program(), example)
    ids = np.asarray([[1, 2, 3, 4, 8]])
    found = program_model(lambda: program)({"ids": ids, "mask": np.ones_like(ids)}, print)
    assert isinstance(found, Own)
    assert found.logits.argmax(-1).tolist() == ids[0].tolist()
    assert "input 'mask'" in str(program_model(lambda: program)({"ids": ids}, print))


def test_another_attribute_or_weight_is_not_reproduced(llama: Host) -> None:
    from graftline.build.compiled import compile_graph
    from graftline.build.plan import pipeline_of
    from graftline.build.recheck import _made_again

    _, text = pipeline_of("plain", None, "ort-cpu", "fp32", None)
    made = compile_graph(llama.model, text, lambda line: None)
    assert _made_again(made, made.lowered.clone(), "pipeline").status == "held"
    other = made.lowered.clone()
    node = next(n for n in other.graph if "epsilon" in n.attributes)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)
    with pytest.raises(LawBroken, match="law 'reproducible' at node"):
        _made_again(made, other, "pipeline")
    other = made.lowered.clone()
    name = next(n for n in other.graph.initializers if "layers.1" in n and "norm" in n)
    change(other.graph.initializers[name], lambda scale: scale * 1.001)
    with pytest.raises(LawBroken, match=f"law 'reproducible' at weight '{name}'"):
        _made_again(made, other, "pipeline")
