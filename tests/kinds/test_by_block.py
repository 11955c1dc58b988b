"""The checkpoint's own model: its weights stay in their files, and each block of a host that no
session can hold is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.optimize import optimize
from graftline.errors import LawBroken
from graftline.kinds.decoder import by_block, proof
from graftline.law import LawRow
from graftline.models import checkpoint, own_model
from graftline.models.hf import HfCheckpoint
from graftline.models.host import Host
from graftline.models.reference import Own
from graftline.models.tiny import tiny

torch = pytest.importorskip("torch")
BLOCKS = 3
TOO_LARGE = "the weights are 99.0 GB"
Run = Callable[[Host], dict[Any, LawRow]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma, whose blocks and embedding compute with buffers of their own, in bf16."""
    from transformers import AutoModelForCausalLM

    path = tiny("gemma2", tmp_path_factory.mktemp("own") / "gemma2", num_hidden_layers=BLOCKS)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gemma(folder: Path) -> Host:
    return HfCheckpoint(folder).host()


@pytest.fixture
def proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The laws of a host's bundle by what and law, as if no session could hold it."""

    def run(host: Host) -> dict[Any, LawRow]:
        class Ready:
            path = tmp_path

            def host(self, *given: Any, **more: Any) -> Host:
                return host

        monkeypatch.setattr(proof, "too_large", lambda parts: TOO_LARGE)
        monkeypatch.setattr(checkpoint, "open_checkpoint", lambda path: Ready())
        laws = optimize("host", tmp_path / "out", recipe="plain").manifest.laws
        return {(law.graft, law.law): law for law in laws}

    return run


def asked(host: Host) -> Own:
    assert callable(host.own)
    ids = np.random.default_rng(0).integers(3, 96, (1, 40))
    found = host.own({"tokens": ids}, print)
    assert isinstance(found, Own), found
    return found


def test_weights_that_stay_in_their_files_give_what_fp32_gives(folder: Path, gemma: Host) -> None:
    from transformers import AutoModelForCausalLM

    found = asked(gemma)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(3, 96, (1, 40))
    with torch.no_grad():
        out = whole(torch.tensor(ids), output_hidden_states=True)
    assert np.array_equal(found.logits, out.logits[0].numpy())
    assert np.array_equal(found.stream[0], out.hidden_states[1][0].numpy())
    assert sorted(found.stream) == [-1, *range(BLOCKS)]


def test_blocks_are_widened_one_at_a_time(gemma: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    real = own_model._run

    def run(model: Any, layers: Any, ids: Any, say: Any) -> Own:
        def count(module: Any, given: Any) -> None:
            every = [p for layer, _ in layers for p in layer.parameters()]
            at_once.append(sum(p.numel() for p in every if p.dtype == torch.float32))

        for layer, _ in layers:
            layer.register_forward_pre_hook(count)
        return real(model, layers, ids, say)

    monkeypatch.setattr(own_model, "_run", run)
    asked(gemma)
    assert len(at_once) == BLOCKS
    assert len(set(at_once)) == 1
    assert at_once[0] > 0


def test_what_does_not_fit_says_so(gemma: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_model, "free_memory", lambda: 2 * 4096)
    assert callable(gemma.own)
    told = gemma.own({"tokens": np.ones((1, 4), np.int64)}, print)
    assert str(told).startswith("the largest block of the checkpoint's own model needs")


def test_every_block_of_a_host_that_is_too_large_is_compared(gemma: Host, proven: Run) -> None:
    laws = proven(gemma)
    row = laws["canonical", "checkpoint"]
    assert row.status == "held"
    assert f"{BLOCKS} blocks and the head, 64 rows each" in row.what
    assert row.value is not None
    assert row.limit is not None
    assert 0 < row.value <= row.limit < 1e-4
    assert laws["ort-cpu", "whole"].status == "not_run"


@pytest.mark.parametrize(
    ("weight", "place"),
    [("layers.2.mlp.down_proj", "block 2"), ("layers.0.self_attn.k_proj", "block 0"),
     ("layers.1.input_layernorm", "block 1"), ("model.norm", "the head"),
     ("lm_head", "block 0")],
)  # fmt: skip
def test_another_weight_is_named_by_its_block(
    weight: str, place: str, gemma: Host, proven: Run
) -> None:
    """Every graph is made of the same wrong weight: only the checkpoint's own model knows."""
    model = gemma.model.clone()
    (name,) = [n for n in model.graph.initializers if weight in n and n.endswith("weight")]
    value = model.graph.initializers[name]
    assert value.const_value is not None
    wrong = np.roll(value.const_value.numpy(), 1, axis=-1)
    value.const_value = ir.tensor(wrong, name=name)
    with pytest.raises(LawBroken, match=f"law 'checkpoint' at '?{place}, row"):
        proven(replace(gemma, model=model))


def test_a_block_that_the_oracle_cannot_hold_is_named(
    gemma: Host, proven: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_block, "oracle_limit", lambda: 1000)
    row = proven(gemma)["canonical", "checkpoint"]
    assert row.status == "not_run"
    assert row.what.startswith("block 0 weighs")


def test_without_a_model_of_its_own_the_law_says_that_it_did_not_run(
    gemma: Host, proven: Run
) -> None:
    told = "transformers cannot load the checkpoint"
    laws = proven(replace(gemma, own=lambda feed, say: told))
    assert laws["canonical", "checkpoint"].what == told
    assert proven(replace(gemma, own=None))["export", "checkpoint"].status == "not_run"
