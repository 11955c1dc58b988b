"""A user's own ONNX file, with its cache and masks, through the whole compiler."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import graftline
from graftline.errors import CheckpointError, NotApplicable


@pytest.fixture(scope="module")
def exports() -> ModuleType:
    """Writes such files; it imports torch."""
    from tests.passes.canonical import user_exports

    return user_exports


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention", "opset", "mask", "past"),
    [
        ("llama", "eager", 18, "pad", False),
        ("llama", "sdpa", 20, "float", True),
        ("gpt2", "sdpa", 23, "bool", False),
    ],
)
def test_optimize_reads_it(
    exports: ModuleType, tmp_path: Path, family: str, attention: str, opset: int, mask: str,
    past: bool,
) -> None:  # fmt: skip
    exports.export(family, tmp_path / "user.onnx", attention, opset, mask, past, True)
    given_mask = mask != "pad" and not past  # nothing in the graph says that it is causal
    passes = "canonicalize{causal_mask=true}" if given_mask else None
    bundle = graftline.optimize(tmp_path / "user.onnx", tmp_path / "out", passes=passes)
    laws = {law.law: law for law in bundle.manifest.laws if law.graft in ("ort-cpu", "export")}
    for name in ("whole", "checkpoint"):
        assert laws[name].status == "held"
        assert (laws[name].limit or 1) < 1e-4
    engine = graftline.load(bundle.path, capacity=60)
    ids = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
    results: list[Any] = [
        engine.generate(np.asarray(ids), max_new_tokens=20, ignore_eos=True, recipe=recipe)
        for recipe in ("plain", "prompt-lookup", "token-recycling")
    ]
    assert results[0].tokens == results[1].tokens == results[2].tokens


def test_a_graph_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    import onnx_ir as ir

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", 3]))
    node = ir.node("Relu", [x])
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "relu.onnx")
    with pytest.raises((NotApplicable, CheckpointError), match=r"decoder|embedding|token"):
        graftline.optimize(tmp_path / "relu.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
