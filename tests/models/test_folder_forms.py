"""Folders whose weights or tokenizer are stored in another form: FP8, composites, older files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import feed, logits, reference
from test_folder_files import add, edit, opened, refused

from graftline.models.mask_token import mask_token
from graftline.models.tiny import tiny
from graftline.models.tokenizer_files import tokenizer_files

BLOCK = 32


def fp8(folder: Path, names: str = "_proj", block: int = BLOCK) -> dict[str, Any]:
    """Store a tiny folder's projections in FP8 with a scale per block, as transformers names them;
    returns what they are by PyTorch: code times its block's scale."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    rows, want = load_file(file), {}
    for name in [n for n in rows if names in n]:
        weight = rows[name].float()
        high, wide = weight.shape[-2:]
        scale = torch.rand(*weight.shape[:-2], -(-high // block), -(-wide // block)) + 0.5
        full = scale.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :high, :wide]
        code = (weight / full).to(torch.float8_e4m3fn)
        rows[name], rows[f"{name}_scale_inv"] = code, scale
        want[name] = code.float() * full
    save_file(rows, file, metadata={"format": "pt"})
    method = {"quant_method": "fp8", "weight_block_size": [block, block]}
    edit(folder / "config.json", quantization_config=method)
    return {**rows, **want}


def plain(folder: Path, rows: dict[str, Any], to: Path) -> Path:
    """The same folder with the values `rows` in fp32 and no quantization."""
    from safetensors.torch import save_file

    shutil.copytree(folder, to)
    kept = {n: v.float().contiguous() for n, v in rows.items() if not n.endswith("_scale_inv")}
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    edit(to / "config.json", quantization_config=None)
    return to


def test_fp8_weights_are_multiplied_by_their_scales(tmp_path: Path, llama: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "fp8"))
    want = fp8(folder)
    host, said = opened(folder)
    assert "FP8 weights times their scales" in said
    name = "model.layers.1.mlp.up_proj.weight"  # [80, 48]: the last blocks are cut
    value = host.model.graph.initializers[name].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), want[name].numpy())
    other = plain(folder, want, tmp_path / "plain")
    np.testing.assert_allclose(logits(host.model, feed()), reference(other, feed()), atol=1e-5)


def test_fp8_experts_are_converted_with_their_scales(tmp_path: Path) -> None:
    folder = tiny("qwen3_moe", tmp_path / "moe", num_hidden_layers=2)
    want = fp8(folder)
    host, _ = opened(folder)
    other = plain(folder, want, tmp_path / "plain")
    np.testing.assert_allclose(logits(host.model, feed()), reference(other, feed()), atol=1e-5)


def test_tensors_that_conversion_drops_are_named(tmp_path: Path) -> None:
    folder = tiny("qwen3_moe", tmp_path / "moe", num_hidden_layers=2)
    add(folder, mtp__fc__weight=np.ones((4, 4), np.float32))
    for _ in range(2):  # converted, and then from the cache
        _, said = opened(folder)
        assert "not read: mtp.* (1)" in said
    add(folder, model__layers__0__self_attn__q_proj__bias=np.ones(48, np.float32))
    refused(folder, r"q_proj\.bias' lies in the decoder")


def test_fp8_without_its_scales_is_refused(tmp_path: Path, llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(llama, tmp_path / "fp8"))
    fp8(folder)
    file = folder / "model.safetensors"
    rows = load_file(file)
    scale = rows.pop("model.layers.0.mlp.up_proj.weight_scale_inv")
    save_file(rows, file)
    refused(folder, r"FP8 tensor 'model\.layers\.0\.mlp\.up_proj\.weight' has no '.*_scale_inv'")
    rows["model.layers.0.mlp.up_proj.weight_scale_inv"] = scale[:1].contiguous()
    save_file(rows, file)
    refused(folder, r"are \[1, 2\], but .* in blocks of 32x32 needs \[3, 2\]")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma-3 with its vision tower, as the 4B and larger are published."""
    import torch
    import transformers

    from graftline.models.tiny import tiny_config

    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=tiny_config("gemma3_text").to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=90,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("composite") / "gemma3"
    model.save_pretrained(folder)
    return folder


def test_the_text_decoder_of_a_composite_is_hosted(gemma3: Path) -> None:
    import torch
    import transformers

    host, said = opened(gemma3)
    assert "of the composite model 'gemma3' its text decoder 'gemma3_text'" in said
    assert "vision_tower" in said
    assert "multi_modal_projector" in said
    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        gemma3, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    values = feed()
    values["tokens"] = np.minimum(values["tokens"], 89)  # 90 stands for an image
    with torch.no_grad():
        want = whole(input_ids=torch.tensor(values["tokens"])).logits.numpy()
    np.testing.assert_allclose(logits(host.model, values), want, atol=1e-5)


def test_a_composite_without_a_decoder_of_its_own_is_named(tmp_path: Path, llama: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "vl"))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    refused(folder, "'qwen2_vl' has the text decoder 'qwen2_vl_text', which transformers builds")


def byte_level(folder: Path) -> None:
    """vocab.json and merges.txt of a tiny byte-level BPE, and no tokenizer.json."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, "he", "ll", "hell", "Ġw"]
    vocab = {w: i for i, w in enumerate([*words, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\nĠ w\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    edit(folder / "tokenizer_config.json", **config, mask_token="hell")


def test_tokenizer_json_is_built_from_older_files(tmp_path: Path, llama: Path) -> None:
    from graftline.runtimes.text.tokenizer import Tokenizer

    folder = Path(shutil.copytree(llama, tmp_path / "old"))
    assert tokenizer_files(folder) == []
    byte_level(folder)
    said: list[str] = []
    files = tokenizer_files(folder, said.append)
    assert "tokenizer.json was built from vocab.json by transformers" in said
    ours = Tokenizer.from_folder(files[0].parent)
    pieces = json.loads((folder / "vocab.json").read_text())
    assert ours.encode("hello w") == [pieces[p] for p in ("hell", "o", "Ġw")]
    assert ours.special["eos_token"] == "<|endoftext|>"
    assert mask_token(folder, files) == pieces["hell"]


def test_what_no_tokenizer_can_be_built_from_is_told(tmp_path: Path, llama: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "broken"))
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece")
    host, said = opened(folder)
    assert "none can be built from tokenizer.model (" in said
    assert "ids only" in said
    assert host.tokenizer_files == []
