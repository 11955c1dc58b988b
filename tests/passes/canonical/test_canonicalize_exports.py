"""Canonicalize on real exports: published families, and users' own ONNX files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graftline.errors import NotApplicable
from graftline.models import fake_host, open_checkpoint
from graftline.models.tiny import FAMILIES, tiny, tiny_config
from graftline.passes.canonical.canonicalize import Canonicalize
from tests.exports import wide
from tests.passes.canonical.user_exports import export, feeds

pytest.importorskip("torch")
KINDS = {
    "gemma2": {"causal", "window"}, "gemma3_text": {"causal", "window"}, "mistral": {"window"},
    "bloom": {"alibi"},
}  # fmt: skip
QUICK = ("llama", "gemma2", "gpt2")


def logits(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The first output by ONNX Runtime, weights read wherever they lie."""
    session = ort.InferenceSession(
        ir.to_proto(ir.external_data.load_to_model(model)).SerializeToString()
    )
    return session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0]


def masks(model: ir.Model) -> set[str]:
    return {
        json.loads(n.metadata_props["graftline.mask"])["kind"]
        for n in model.graph if n.op_type == "Attention"
    }  # fmt: skip


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAMILIES]
)
def test_families_keep_their_logits(family: str, tmp_path: Path) -> None:
    model = open_checkpoint(tiny(family, tmp_path / family, **wide(family))).host().model
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 90, (2, 21))
    given = {
        "tokens": tokens, "positions": np.tile(np.arange(21), (2, 1)),
        "attention_mask": np.ones_like(tokens),
    }  # fmt: skip
    before = logits(model, given)
    Canonicalize().apply(model)
    np.testing.assert_allclose(logits(model, given), before, atol=1e-4)
    assert masks(model) == KINDS.get(family, {"causal"})
    kinds = Counter(n.op_type for n in model.graph)
    assert kinds["Attention"] >= 3
    assert not {"Cos", "Sin", "ReduceMean", "CumSum", "Trilu", "Range", "Gemm"} & set(kinds)


FILES = [
    ("llama", "eager", 18, "pad", False, True), ("llama", "sdpa", 20, "float", True, True),
    ("gpt2", "sdpa", 23, "bool", False, True), ("gpt2", "sdpa", 20, "pad", False, False),
    ("gpt2", "eager", 18, "float", False, True), ("llama", "sdpa", 23, "pad", True, True),
    ("llama", "sdpa", 18, "pad", False, False), ("llama", "sdpa", 20, "bool", False, True),
    ("llama", "eager", 20, "float", True, True), ("llama", "sdpa", 18, "float", True, True),
    ("llama", "sdpa", 23, "float", True, True),
]  # fmt: skip
"""Every two options of a file that go together; tests/test_user_onnx.py optimizes the first three.
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention", "opset", "mask", "past", "positions"), FILES,
    ids=["-".join(map(str, f)) for f in FILES],
)  # fmt: skip
def test_users_files_keep_their_logits(
    family: str, attention: str, opset: int, mask: str, past: bool, positions: bool, tmp_path: Path
) -> None:
    file = tmp_path / "user.onnx"
    export(family, file, attention, opset, mask, past, positions)
    model, given = ir.load(file), feeds(mask, past, positions)
    before = logits(model, given)
    given_mask = mask != "pad" and not past  # nothing in the graph says that it is causal
    graft = Canonicalize(positions=64, causal_mask=given_mask)
    graft.requires(model)
    graft.apply(model)
    assert [v.name for v in model.graph.inputs] == ["tokens", "positions"]
    np.testing.assert_allclose(logits(model, graft.neutral(given, model)), before, atol=1e-4)
    assert masks(model) == {"causal"}


@pytest.mark.slow
def test_eager_attention_with_a_boolean_mask_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "user.onnx"
    export("llama", file, "eager", 20, "bool", False, True)
    with pytest.raises(NotApplicable, match="a boolean mask is added to the scores as 0 and 1"):
        Canonicalize(positions=64).apply(ir.load(file))


@pytest.mark.slow
def test_a_deep_host_of_70_billion_parameters_is_read_without_its_weights() -> None:
    """Reading a weight of a fake host raises; the work is linear in the graph."""
    sizes = {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    model = fake_host(tiny_config("llama", **sizes)).model
    Canonicalize().apply(model)
    kinds = Counter(n.op_type for n in model.graph)
    assert (kinds["Attention"], kinds["RotaryEmbedding"], kinds["RMSNormalization"]) == (
        80,
        160,
        161,
    )
    assert sum(i.name.startswith("rotary.") for i in model.graph.initializers.values()) == 2
