"""Stamping out layers gives the graph that exporting every layer gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from harness import feed, logits, meaning

from graftline.errors import NotApplicable
from graftline.models import fake_host, open_checkpoint
from graftline.models.export import stamp as stamping
from graftline.models.export.blocks import Irregular
from graftline.models.export.layer_kinds import prefix_length
from graftline.models.export.stamp import stamp
from graftline.models.tiny import tiny, tiny_config


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"num_hidden_layers": 4}),
        ("gemma2", {"num_hidden_layers": 5}),
        pytest.param("gemma3_text", {}, marks=pytest.mark.slow),
        pytest.param("gpt2", {"n_layer": 4}, marks=pytest.mark.slow),
    ],
)
def test_stamped_equals_full_export(family: str, options: dict[str, int], tmp_path: Path) -> None:
    folder = tiny(family, tmp_path / family, **options)
    said: list[str] = []
    stamped = open_checkpoint(folder).host(watch=said.append)
    whole = open_checkpoint(folder).host(full_export=True)
    assert any("stamping" in line for line in said)
    assert meaning(stamped.model) == meaning(whole.model)
    assert set(stamped.model.graph.initializers) >= {
        n for n in whole.model.graph.initializers if n.endswith("weight")
    }
    values = feed()
    np.testing.assert_array_equal(logits(stamped.model, values), logits(whole.model, values))


def test_prefix_holds_every_kind_and_the_first_twice() -> None:
    assert prefix_length([0] * 30) == 2
    assert prefix_length([0, 1, 0, 1, 0, 1]) == 3  # layer 0 alone could hide the scaled embedding
    assert prefix_length([0, 0, 0, 0, 0, 1, 0, 0]) == 6
    assert prefix_length([0, 1, 1, 1]) == 2
    assert prefix_length([0]) == 1


TWO_LAYERS = """<ir_version: 10, opset_import: ["": 23]>
host (int64[B,N] tokens, float[8,4] embed, float[4,4] l_0_w, float[4,4] l_1_w, float[4,8] head)
    => (float[B,N,8] logits)
<float[B,N,4] x0, float[B,N,4] x1, float[B,N,4] x2>
{
    x0 = Gather(embed, tokens)
    a0 = MatMul(x0, l_0_w)
    b0 = Relu(a0)
    x1 = Add(x0, b0)
    a1 = MatMul(x1, l_1_w)
    b1 = SECOND(a1)
    x2 = Add(x1, b1)
    logits = MatMul(x2, head)
}"""


def _two_layers(second: str) -> ir.Model:
    """A residual decoder of two layers l.0 and l.1, its weights as initializers."""
    model = ir.from_onnx_text(TWO_LAYERS.replace("SECOND", second))
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.name = str(value.name).replace("_", ".")
        shape = tuple(int(n) for n in value.shape or ())  # type: ignore[arg-type]
        value.const_value = ir.tensor(np.ones(shape, np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


def test_unlike_blocks_are_not_copied() -> None:
    model = _two_layers("Sigmoid")
    found = stamp(model, "l", [0, 0, 0], 2)
    assert isinstance(found, Irregular)
    assert str(found) == "layers 0 and 1 look alike but compute different things"
    assert len(model.graph) == 8, "nothing was changed"


def test_a_layer_that_others_read_is_named_with_its_reader() -> None:
    model = _two_layers("Relu")
    inner = next(n for n in model.graph if n.op_type == "Relu").outputs[0]
    model.graph.node(-1).replace_input_with(0, inner)
    found = stamp(model, "l", [0, 0, 0], 2)
    assert isinstance(found, Irregular)
    assert "no value separates layer" in found.reason


def test_what_is_no_irregular_layer_is_no_reason_to_export_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An irregular layer is told and exported; a defect of ours on the way is not hidden by it."""
    folder, said = tiny("llama", tmp_path / "llama", num_hidden_layers=4), list[str]()
    why = Irregular("layers 0 and 1 look alike but compute different things")
    monkeypatch.setattr(stamping, "stamp", lambda *parts: why)
    assert open_checkpoint(folder).host(watch=said.append).facts.layers == 4
    assert f"exporting all 4 layers, because {why}" in said

    def broken(*parts: object) -> None:
        raise NotApplicable("a defect")

    monkeypatch.setattr(stamping, "stamp", broken)
    with pytest.raises(NotApplicable, match="a defect"):
        open_checkpoint(folder).host()


def test_stamp_adds_one_block_per_layer() -> None:
    model = _two_layers("Relu")
    added = stamp(model, "l", [0, 0, 0, 0], 2)
    assert added == ["l.2.w", "l.3.w"]
    assert [n.op_type for n in model.graph] == ["Gather", *["MatMul", "Relu", "Add"] * 4, "MatMul"]
    head = model.graph.node(-1)
    chain, value = [], head.inputs[0]
    while value is not None and value.producer().op_type == "Add":  # type: ignore[union-attr]
        add = value.producer()
        chain.append(add.inputs[1].producer().inputs[0].producer().inputs[1].name)  # type: ignore[union-attr]
        value = add.inputs[0]  # type: ignore[union-attr]
    assert chain == ["l.3.w", "l.2.w", "l.1.w", "l.0.w"]


def test_a_large_shape_needs_no_weights() -> None:
    config = tiny_config(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        pad_token_id=None,
    )
    host = fake_host(config)
    assert host.facts.parameters == 70_553_706_496
    last = host.model.graph.initializers["model.layers.79.mlp.down_proj.weight"]
    assert last.shape == ir.Shape([8192, 28672])
    assert sum(n.op_type == "Attention" for n in host.model.graph) == 80
