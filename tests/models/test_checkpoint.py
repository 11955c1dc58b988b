"""Every format opens, and every kind of damage is one line that says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from harness import assert_same_logits, feed, logits, reference

from graftline.errors import CheckpointError, GraftlineError
from graftline.models import external_files, open_checkpoint
from graftline.models.tiny import tiny
from tests.models.refusals import Bomb, refused


def _edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_weights_stay_in_the_checkpoint(llama: Path) -> None:
    host = open_checkpoint(llama).host()
    assert external_files(host.model) == [(llama / "model.safetensors").resolve()]
    held = [v for v in host.model.graph.initializers.values() if v.name and "layers" in v.name]
    assert held
    assert all(isinstance(v.const_value, ir.ExternalTensor) for v in held)


def test_sharded(tmp_path: Path, llama: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "s", max_shard_size="60KB")
    host = open_checkpoint(tmp_path / "s").host()
    assert len(external_files(host.model)) > 1
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))


def test_tied_weights_are_one_initializer(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "tied", tie_word_embeddings=True)
    host = open_checkpoint(folder).host()
    tables = [v for v in host.model.graph.initializers.values() if v.shape == ir.Shape([96, 48])]
    assert len(tables) == 1
    assert_same_logits(logits(host.model, feed()), reference(folder, feed()))


def test_bfloat16_is_cast_when_read(tmp_path: Path, llama: Path) -> None:
    import torch
    import transformers

    half = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    host = open_checkpoint(tmp_path / "half").host()
    weight = host.model.graph.initializers["model.norm.weight"]
    assert weight.dtype == ir.DataType.FLOAT
    assert isinstance(weight.const_value, ir.LazyTensor)
    want = reference(tmp_path / "half", feed())
    assert_same_logits(logits(host.model, feed()), want)


def test_names_without_the_base_prefix(tmp_path: Path) -> None:
    """The first GPT-2 checkpoints name `h.0...`, the model `transformer.h.0...`."""
    from safetensors.numpy import load_file, save_file

    folder = tiny("gpt2", tmp_path / "bare")
    file = folder / "model.safetensors"
    rows = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    save_file(rows, file, metadata={"format": "pt"})
    said: list[str] = []
    host = open_checkpoint(folder).host(watch=said.append)
    assert not any("converting" in line for line in said)
    assert_same_logits(logits(host.model, feed()), reference(folder, feed()))


def test_pickled_tensors_are_converted(tmp_path: Path, llama: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(llama, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    host = open_checkpoint(folder).host()
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))


def test_pickled_code_is_never_run(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(llama, tmp_path / "bomb")
    torch.save({"x": Bomb()}, folder / "pytorch_model.bin", pickle_module=pickle)
    (folder / "model.safetensors").unlink()
    refused(folder, "pytorch_model.bin: not a plain tensor pickle")
    assert not (tmp_path / "exploded").exists()


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder; give a local checkpoint"):
        open_checkpoint(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_lone_safetensors(llama: Path) -> None:
    with pytest.raises(CheckpointError, match=r"give the folder with config\.json"):
        open_checkpoint(llama / "model.safetensors")


def test_truncated_safetensors(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, r"model.safetensors: truncated \(\d+ bytes, header says \d+\); download")
    file.write_bytes(b"")
    refused(folder, "truncated or not a safetensors file")
    file.write_bytes((200).to_bytes(8, "little") + b"{" * 300)
    refused(folder, "damaged header")


def test_missing_shard(tmp_path: Path, llama: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "s", max_shard_size="60KB")
    sorted((tmp_path / "s").glob("*.safetensors"))[1].unlink()
    refused(tmp_path / "s", r"1 of \d+ shards missing, first model-00002")


def test_shard_outside_the_folder(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "out")
    index = {"weight_map": {"lm_head.weight": "../llama/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "is not a plain file name; refused")


def test_wrong_shape(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "shape")
    _edit_config(folder, intermediate_size=96)
    refused(folder, r"is \[\d+, \d+\] but the config asks for \[\d+, \d+\]")


def test_missing_tensor(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "short")
    _edit_config(folder, num_hidden_layers=4)
    refused(folder, r"9 tensors missing, first 'model\.layers\.3")


def test_unknown_architecture(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "new")
    _edit_config(folder, model_type="yeti", architectures=["YetiForCausalLM"])
    refused(folder, r"model_type 'yeti' is not known to transformers .* give the \.onnx file")


def test_not_a_decoder(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(folder, "config.json: Unrecognized configuration class")


FULL = "full_attention"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5"}, "'t5' is an encoder-decoder, which graftline does not host yet"),
        ({"model_type": "marian"}, "'marian' is an encoder-decoder"),
        ({"model_type": "mamba"}, "MambaForCausalLM keeps a running state"),
        ({"model_type": "jamba"}, "JambaForCausalLM keeps a running state"),
        ({"model_type": "minimax", "num_hidden_layers": 2}, "MiniMaxForCausalLM keeps a running"),
        (
            {"model_type": "lfm2", "num_hidden_layers": 2, "layer_types": ["conv", FULL]},
            "Lfm2ForCausalLM keeps a running state",
        ),
    ],
)
def test_hosts_that_are_not_there_yet(
    config: dict[str, Any], words: str, tmp_path: Path, llama: Path
) -> None:
    folder = shutil.copytree(llama, tmp_path / "other")
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, words)


def test_damaged_config(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "json")
    (folder / "config.json").write_text("{")
    refused(folder, r"config.json: not JSON")


def test_damaged_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    refused(file, "truncated or damaged GGUF")


def test_a_gguf_that_was_cut_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    """What a whole one becomes is the matter of tests/test_smollm2.py."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2_gguf.read_bytes()[:-1000])
    refused(cut, "GGUF")


def test_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"....")
    with pytest.raises(GraftlineError, match="unknown kind of checkpoint; give"):
        open_checkpoint(tmp_path / "m.bin")
