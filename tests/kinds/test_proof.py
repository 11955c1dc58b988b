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
from graftline.facts import decoder_facts
from graftline.law import LawRow
from graftline.models import checkpoint
from graftline.models.decoder import TinyDecoder
from graftline.models.export import stamp
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Host
from graftline.models.tiny import tiny
from graftline.passes.graph.constants import constants
from graftline.passes.lower.quantize import quantize
from tests.kinds.lowering_faults import (
    BLOCKS,
    WINDOW,
    Fault,
    by_row_order,
    change,
    late_rotary,
    lowered_with,
    widened,
    zeroed_head,
)

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": BLOCKS}


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
    from graftline.build.pipelines import pipeline_of
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
