"""Hugging Face folders as people have them: what transformers computes, or one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import feed, logits, reference
from safetensors.numpy import load_file, save_file

from graftline.errors import CheckpointError
from graftline.models import open_checkpoint
from graftline.models.hf import generation
from graftline.models.host import Host
from graftline.models.tiny import tiny
from tests.models.refusals import refused


@pytest.fixture
def folder(tmp_path: Path, llama: Path) -> Path:
    """A copy of the tiny Llama that a test may change."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit(file: Path, **changes: object) -> None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**found, **changes}))


def add(folder: Path, **tensors: Any) -> None:
    """More tensors in the checkpoint; dots are spelled `__`."""
    file = folder / "model.safetensors"
    rows = {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({**load_file(file), **rows}, file, metadata={"format": "pt"})


def opened(folder: Path) -> tuple[Host, str]:
    said: list[str] = []
    return open_checkpoint(folder).host(watch=said.append), "\n".join(said)


def assert_equal(host: Host, folder: Path) -> None:
    np.testing.assert_allclose(logits(host.model, feed()), reference(folder, feed()), atol=1e-5)


ONES = np.ones((4, 4), np.float32)


def test_a_tied_config_over_a_head_of_its_own(tmp_path: Path, folder: Path) -> None:
    edit(folder / "config.json", tie_word_embeddings=True)
    host, said = opened(folder)
    assert "ties 'lm_head.weight' and 'model.embed_tokens.weight'" in said
    assert_equal(host, folder)
    rows = load_file(folder / "model.safetensors")
    add(folder, lm_head__weight=rows["model.embed_tokens.weight"])
    host, said = opened(folder)
    assert "ties" not in said
    assert "not read" not in said
    assert_equal(host, folder)


def test_tensors_beside_the_decoder_are_named(folder: Path) -> None:
    add(folder, mtp__fc__weight=ONES, mtp__norm__weight=ONES, vision_tower__a__b=ONES)
    host, said = opened(folder)
    assert "not read: mtp.* (2), vision_tower.* (1)" in said
    assert_equal(host, folder)


def test_buffers_of_old_versions_pass_silently(folder: Path) -> None:
    frequencies = np.ones(6, np.float32)
    add(
        folder,
        model__layers__0__self_attn__rotary_emb__inv_freq=frequencies,
        model__embeddings__position_ids=np.arange(6),
        model__layers__0__self_attn__masked_bias=np.float32([-1e9]),
        model__layers__0__self_attn__bias=np.tril(np.ones((1, 1, 8, 8), np.float32)),
    )
    host, said = opened(folder)
    assert "not read" not in said
    assert_equal(host, folder)


def test_tensors_of_the_decoder_are_never_dropped(folder: Path) -> None:
    add(folder, model__layers__0__self_attn__q_proj__bias=np.ones(48, np.float32))
    refused(folder, r"'model\.layers\.0\.self_attn\.q_proj\.bias' lies in the decoder")


def test_a_stack_cut_short_is_refused(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=2)
    refused(folder, r"'model\.layers\.2\..*' lies in the decoder \(model\.layers\)")
    edit(folder / "config.json", num_nextn_predict_layers=1)
    _, said = opened(folder)
    assert "not read: model.layers.* (9)" in said


def test_end_ids_of_config_without_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[2, 7])
    assert generation(folder) == {"eos_token_id": [2, 7]}
    edit(folder / "generation_config.json", top_k=5, eos_token_id=None)
    assert generation(folder) == {"eos_token_id": [2, 7], "top_k": 5}
    edit(folder / "generation_config.json", eos_token_id=9)
    assert generation(folder)["eos_token_id"] == 9
    edit(folder / "config.json", eos_token_id=None, text_config={"eos_token_id": [4]})
    (folder / "generation_config.json").unlink()
    assert generation(folder) == {"eos_token_id": [4]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 0}, r"head_dim=0 is less than 1"),
        ({"head_dim": 10**9}, r"head_dim=1000000000 is too large: all its weights are \d+ numbers"),
        ({"num_hidden_layers": -3}, "num_hidden_layers=-3 is less than 1"),
        ({"vocab_size": 0}, "vocab_size=0 is less than 1"),
        ({"hidden_size": 10**12}, "hidden_size=1000000000000 is too large"),
        ({"intermediate_size": 1.5}, "intermediate_size=1.5 is not a whole number"),
        ({"num_attention_heads": "4"}, "num_attention_heads='4' is not a whole number"),
        ({"max_position_embeddings": 10**20}, "max_position_embeddings=1" + "0" * 20),
        ({"num_attention_heads": 5}, r"config\.json: .*5"),
        ({"num_key_value_heads": 3}, r"is \[24, 48\] but the config asks for \[36, 48\]"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
            r"config\.json: 'inv_freq' of LlamaRotaryEmbedding is not finite",
        ),
    ],
)
def test_absurd_sizes(changes: dict[str, object], words: str, folder: Path) -> None:
    edit(folder / "config.json", **changes)
    refused(folder, words)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantized by 'gptq', which graftline does not read"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized by 'bitsandbytes'"),
        ({"quant_method": "fp8", "weight_block_size": [0, 4]}, r"weight_block_size=\[0, 4\]"),
    ],
)
def test_other_quantizations_are_named(method: dict[str, object], words: str, folder: Path) -> None:
    edit(folder / "config.json", quantization_config=method)
    refused(folder, words)


def test_a_stale_index(tmp_path: Path, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    edit(index, weight_map={"lm_head.weight": "model-00001-of-00002.safetensors"})
    host, _ = opened(folder)  # transformers reads model.safetensors too
    assert_equal(host, folder)
    whole = folder / "model.safetensors"
    shard = whole.rename(folder / "model-00001-of-00002.safetensors")
    rows = load_file(shard)
    edit(index, weight_map=dict.fromkeys(rows, shard.name))
    (folder / "consolidated.safetensors").write_bytes(b"")
    host, said = opened(folder)
    assert "not read: consolidated.safetensors; the weights are those of model-00001" in said
    edit(index, weight_map=dict.fromkeys([*rows, "gone"], shard.name))
    refused(folder, r"stale, tensor 'gone' is not in model-00001")


def test_adapters_and_draft_heads_are_named(tmp_path: Path, folder: Path) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    edit(lora / "adapter_config.json", peft_type="LORA", base_model_name_or_path="meta/x")
    with pytest.raises(CheckpointError, match=r"a LORA adapter .* for meta/x, not a checkpoint"):
        open_checkpoint(lora).host()
    edit(folder / "config.json", medusa_num_heads=3, base_model_name_or_path="lmsys/vicuna")
    refused(folder, r"Medusa draft heads \(config.json: medusa_num_heads\) for lmsys/vicuna")
    edit(folder / "config.json", medusa_num_heads=None, architectures=["LlamaForCausalLMEagle3"])
    refused(folder, "an EAGLE draft head .* give the model that it drafts for")
    edit(folder / "config.json", architectures=["Eagle2_5_VLForConditionalGeneration"])
    opened(folder)  # a vision model of that name
    edit(folder / "config.json", architectures=["LlamaForCausalLM"])
    add(folder, midlayer__hidden_norm__weight=ONES)
    refused(folder, r"an EAGLE-3 draft head \(tensor 'midlayer\.hidden_norm\.weight'\)")


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    "original_max_position_embeddings": 32,
}


def test_longrope_is_served_below_its_original_length(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 32,
        "num_hidden_layers": 2,
    }
    place = tiny("phi3", tmp_path / "long", **changes)
    host, said = opened(place)
    assert "served up to 32" in said
    assert host.facts.positions == 32
    assert not {n.op_type for n in host.model.graph} & {"ReduceMax", "Where", "If"}
    assert_equal(host, place)  # 21 positions
    same = {**LONGROPE, "long_factor": LONGROPE["short_factor"]}
    place = tiny("phi3", tmp_path / "same", **{**changes, "rope_parameters": same})
    host, said = opened(place)
    assert "served up to" not in said
    longer = feed(rows=40)
    np.testing.assert_allclose(logits(host.model, longer), reference(place, longer), atol=1e-5)


def test_dynamic_rotary_is_served_up_to_its_positions(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    place = tiny("llama", tmp_path / "dynamic", rope_parameters=rope, num_hidden_layers=2)
    host, _ = opened(place)
    assert host.facts.positions == 128
    assert_equal(host, place)
