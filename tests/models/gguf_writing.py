"""Write a tiny Hugging Face Llama or Qwen3 as the GGUF that llama.cpp's converter would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Blocks
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file

LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
More = Callable[[GGUFWriter], None]


def name_of(name: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER[stem]}.{kind}"


def permuted(rows: Any, heads: int) -> Any:
    """llama.cpp's order of the rows of q and k for the architecture llama."""
    size = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, size, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensors(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if config["model_type"] == "llama" and ".q_proj" in name:
            value = permuted(value, config["num_attention_heads"])
        if config["model_type"] == "llama" and ".k_proj" in name:
            value = permuted(value, config["num_key_value_heads"])
        rows[name_of(name)] = np.ascontiguousarray(value)
    return rows


def write_gguf(
    folder: Path, file: Path, more: More | None = None, blocks: Blocks | None = None, **extra: Any
) -> Path:
    """The folder's model as a GGUF file; `more` adds keys, `extra` tensors (dots spelled `__`),
    `blocks` is how matrices are stored."""
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(file, config["model_type"])
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("rope_theta", 1e4))
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    write_tokenizer(writer, config["vocab_size"])
    if more is not None:
        more(writer)
    rows = {**tensors(folder, config), **{k.replace("__", "."): v for k, v in extra.items()}}
    for name, value in rows.items():
        if blocks is None or value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, quantize(value, blocks), raw_dtype=blocks)
    finish(writer)
    return file


def rounded(folder: Path, blocks: Blocks) -> None:
    """The folder's matrices become what a file that stores them in such blocks holds."""
    file = folder / "model.safetensors"
    rows = load_file(file)
    for name, value in rows.items():
        if value.ndim > 1:
            rows[name] = dequantize(quantize(value, blocks), blocks)
    save_file(rows, file, {"format": "pt"})


def write_tokenizer(writer: GGUFWriter, count: int) -> None:
    words = ["<unk>", "<s>", "</s>", "1", "2", "12", *(chr(0x61 + i) for i in range(26))]
    words += [f"<{i}>" for i in range(count - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *([1] * (count - 3))])
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
