"""A checkpoint with auxiliary decoders beside it, built with the latent tokens it thinks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline import load, optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.models.decoder import TinyDecoder
from graftline.models.tiny import tiny
from tests.tiny_checkpoints import write_tokenizer

LATENT = "<|start-latent-vis|>" + "<|latent-vis|>" * 4 + "<|end-latent-vis|><answer>[["
BESIDE = (
    "_latent_cot_aux_decoder.model.layers.0.self_attn.q_proj.weight",
    "_latent_cot_visual_aux_decoder.lm_head.weight", "_latent_cot_latent_proj.0.weight",
)  # fmt: skip
"""Tensors of the published checkpoint that only explain its latent states."""
MARK = 77.25
"""What all of these hold, and no other tensor."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import load_file, save_file

    folder = tiny("llama", tmp_path_factory.mktemp("onevl") / "host", vocab_size=257,
                  num_hidden_layers=2, max_position_embeddings=256)  # fmt: skip
    write_tokenizer(folder)
    file = folder / "model.safetensors"
    more = {name: np.full((64, 64), MARK, np.float32) for name in BESIDE}
    save_file(load_file(file) | more, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Bundle:
    told = list[str]()
    made = optimize(checkpoint, checkpoint.parent / "made.graft", recipe="onevl", weights="copy",
                    answer_prefix=LATENT, watch=told.append)  # fmt: skip
    (line,) = [one for one in told if "not read" in one]
    assert "_latent_cot_aux_decoder.* (1)" in line
    return made


def test_auxiliary_decoders_stay_out_of_the_bundle(bundle: Bundle) -> None:
    mark = np.full(64, MARK, np.float32).tobytes()
    files = [f for f in bundle.path.rglob("*") if f.is_file()]
    assert files
    assert not [f.name for f in files if mark in f.read_bytes()]


def test_every_answer_follows_the_latent_tokens(bundle: Bundle) -> None:
    assert bundle.manifest.generation["answer_prefix"] == LATENT
    assert "--answer-prefix" in bundle.manifest.rebuild
    engine = load(bundle.path, costs=False)
    made = engine.generate("Where to?", max_new_tokens=6, ignore_eos=True)
    ids = engine.tokenizer.encode("Where to?") + engine.tokenizer.encode_part(LATENT)  # type: ignore[union-attr]
    asked = {"max_new_tokens": 6, "ignore_eos": True, "answer_prefix": ""}
    assert made.tokens == engine.generate(ids, **asked).tokens
    assert made.usage.prompt_tokens == len(ids)


def test_outputs_beside_the_logits_take_their_weights_along(tmp_path: Path) -> None:
    model = TinyDecoder(layers=1, vocabulary=64, positions=64).build()
    graph = model.graph
    last = graph.outputs[0].producer()
    assert last is not None
    width = TinyDecoder(layers=1).hidden
    weight = ir.Value(name="auxiliary", type=ir.TensorType(ir.DataType.FLOAT))
    weight.const_value = ir.tensor(np.full((width, 7), MARK, np.float32), name="auxiliary")
    graph.register_initializer(weight)
    node = ir.node("MatMul", [last.inputs[0], weight])
    node.outputs[0].name, node.outputs[0].type = "explained", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["B", "N", 7])
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    ir.save(model, tmp_path / "host.onnx")
    made = optimize(tmp_path / "host.onnx", tmp_path / "made.graft", recipe="plain")
    engine = ir.load(made.graph(made.manifest.target))
    assert [v.name for v in engine.graph.outputs].count("explained") == 0
    assert "auxiliary" not in engine.graph.initializers


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    ir.save(TinyDecoder(layers=1, vocabulary=64, positions=64).build(), tmp_path / "host.onnx")
    with pytest.raises(GraftlineError, match=r"onevl needs the latent .*--answer-prefix TEXT"):
        optimize(tmp_path / "host.onnx", tmp_path / "x.graft", recipe="onevl")
    with pytest.raises(GraftlineError, match="is a text, and the checkpoint has no tokenizer"):
        optimize(tmp_path / "host.onnx", tmp_path / "x.graft", answer_prefix=LATENT)
