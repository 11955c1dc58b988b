"""Every format opens, and every kind of damage is one line that says what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from harness import assert_same_logits, feed, logits, reference, save

from graftline.errors import CheckpointError, GraftlineError
from graftline.facts import decoder_facts
from graftline.models import external_files, open_checkpoint
from graftline.models.tiny import tiny
from graftline.passes.canonical.canonicalize import Canonicalize


def _copy(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def _refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path).host()
    assert "\n" not in str(caught.value)


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

    folder = _copy(llama, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    host = open_checkpoint(folder).host()
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return open, ("exploded", "w")  # type: ignore[return-value]


def test_pickled_code_is_never_run(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    folder = _copy(llama, tmp_path / "bomb")
    torch.save({"x": _Bomb()}, folder / "pytorch_model.bin", pickle_module=pickle)
    (folder / "model.safetensors").unlink()
    _refused(folder, "pytorch_model.bin: not a plain tensor pickle")
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
    folder = _copy(llama, tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    _refused(folder, r"model.safetensors: truncated \(\d+ bytes, header says \d+\); download")
    file.write_bytes(b"")
    _refused(folder, "truncated or not a safetensors file")
    file.write_bytes((200).to_bytes(8, "little") + b"{" * 300)
    _refused(folder, "damaged header")


def test_missing_shard(tmp_path: Path, llama: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "s", max_shard_size="60KB")
    sorted((tmp_path / "s").glob("*.safetensors"))[1].unlink()
    _refused(tmp_path / "s", r"1 of \d+ shards missing, first model-00002")


def test_shard_outside_the_folder(tmp_path: Path, llama: Path) -> None:
    folder = _copy(llama, tmp_path / "out")
    index = {"weight_map": {"lm_head.weight": "../llama/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _refused(folder, "is not a plain file name; refused")


def test_wrong_shape(tmp_path: Path, llama: Path) -> None:
    folder = _copy(llama, tmp_path / "shape")
    _edit_config(folder, intermediate_size=96)
    _refused(folder, r"is \[\d+, \d+\] but the config asks for \[\d+, \d+\]")


def test_missing_tensor(tmp_path: Path, llama: Path) -> None:
    folder = _copy(llama, tmp_path / "short")
    _edit_config(folder, num_hidden_layers=4)
    _refused(folder, r"9 tensors missing, first 'model\.layers\.3")


def test_unknown_architecture(tmp_path: Path, llama: Path) -> None:
    folder = _copy(llama, tmp_path / "new")
    _edit_config(folder, model_type="yeti", architectures=["YetiForCausalLM"])
    _refused(folder, r"model_type 'yeti' is not known to transformers .* give the \.onnx file")


def test_not_a_decoder(tmp_path: Path, llama: Path) -> None:
    folder = _copy(llama, tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    _refused(folder, "config.json: Unrecognized configuration class")


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
    folder = _copy(llama, tmp_path / "other")
    (folder / "config.json").write_text(json.dumps(config))
    _refused(folder, words)


def test_damaged_config(tmp_path: Path, llama: Path) -> None:
    folder = _copy(llama, tmp_path / "json")
    (folder / "config.json").write_text("{")
    _refused(folder, r"config.json: not JSON")


def test_damaged_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    _refused(file, "truncated or damaged GGUF")


@pytest.mark.slow
def test_gguf_equals_its_folder(smollm2_gguf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_gguf)
    host = checkpoint.host()
    assert host.facts.layers == 30
    assert host.facts.source == smollm2_gguf.name
    assert {f.name for f in host.tokenizer_files} >= {"tokenizer.json"}
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2_gguf.read_bytes()[:-1000])
    _refused(cut, "GGUF")


@pytest.fixture(scope="module")
def onnx_file(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return save(open_checkpoint(llama).host().model, folder / "m.onnx", external="m.data")


def sizes(model: ir.Model) -> tuple[int, int, int]:
    """Vocabulary, hidden size and layers, which the canonical form says."""
    canonical = model.clone()
    Canonicalize().apply(canonical)
    facts = decoder_facts(canonical)
    return facts.vocabulary, facts.hidden, facts.layers


def test_onnx_with_external_data(onnx_file: Path, llama: Path) -> None:
    host = open_checkpoint(onnx_file).host()
    facts = host.facts
    assert sizes(host.model) == (96, 48, 3)
    assert (facts.heads, facts.kv_heads, facts.head_size) == (4, 2, 12)
    config = open_checkpoint(llama).host().facts
    assert 0 <= facts.parameters - config.parameters < 32  # rotary frequencies are in the graph
    assert external_files(host.model) == [(onnx_file.parent / "m.data").resolve()]
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))


def _relocated(source: Path, folder: Path, location: str) -> Path:
    """A copy of an ONNX file whose first external tensor claims to lie at `location`."""
    proto = onnx.load(source, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.external_data)
    for row in tensor.external_data:
        if row.key == "location":
            row.value = location
    shutil.copy(source.parent / "m.data", folder / "m.data")
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("location", ["/etc/passwd", "../m.data", "a/../../m.data", "C:\\m.data"])
def test_external_data_outside_the_folder(location: str, onnx_file: Path, tmp_path: Path) -> None:
    _refused(_relocated(onnx_file, tmp_path, location), "outside the model's folder")


def test_external_data_through_a_link(onnx_file: Path, tmp_path: Path) -> None:
    file = _relocated(onnx_file, tmp_path, "link.data")
    (tmp_path / "link.data").symlink_to("/etc/passwd")
    _refused(file, "is a link")


def test_external_data_missing_or_short(onnx_file: Path, tmp_path: Path) -> None:
    file = _relocated(onnx_file, tmp_path, "m.data")
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-50])
    _refused(file, "m.data is truncated")
    data.unlink()
    _refused(file, "its data file m.data is missing")


def test_damaged_onnx(onnx_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(onnx_file.read_bytes()[: onnx_file.stat().st_size // 2])
    _refused(file, "not an ONNX model|not a valid graph|an empty graph")
    file.write_bytes(b"not onnx at all")
    _refused(file, "truncated or not an ONNX model")


def test_pt2_equals_the_model(tmp_path: Path, llama: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llama, attn_implementation="sdpa")

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            seen = torch.ones_like(tokens)
            return self.model(
                input_ids=tokens, position_ids=positions, attention_mask=seen, use_cache=False
            ).logits

    size = {0: torch.export.Dim("B"), 1: torch.export.Dim("N")}
    example = (torch.zeros(2, 6, dtype=torch.int64), torch.arange(6).repeat(2, 1))
    program = torch.export.export(
        Plain().eval(), example, dynamic_shapes={"tokens": size, "positions": size}, strict=False
    )
    torch.export.save(program, tmp_path / "m.pt2")
    beside = [tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"]
    for file in beside:
        file.write_text("{}")
    host = open_checkpoint(tmp_path / "m.pt2").host()
    assert host.tokenizer_files == beside
    assert sizes(host.model) == (96, 48, 3)
    assert external_files(host.model)
    assert host.weights.stored
    assert_same_logits(logits(host.model, feed()), reference(llama, feed()))
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "m.pt2").read_bytes()[:-5000])
    _refused(tmp_path / "cut.pt2", r"truncated or not a \.pt2 archive")
    with zipfile.ZipFile(tmp_path / "m.pt2", "a") as archive:
        archive.writestr("m/data/constants/opaque_obj_0", pickle.dumps(_Bomb()))
    _refused(tmp_path / "m.pt2", "opaque_obj_0', which is neither program nor tensor; refused")


def test_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"....")
    with pytest.raises(GraftlineError, match="unknown kind of checkpoint; give"):
        open_checkpoint(tmp_path / "m.bin")
