"""Tiny random Hugging Face checkpoints, one per architecture: data for tests only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 12}
MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
PARTIAL = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}
LOCAL = {"sliding_window": 8}
TWO = {"num_hidden_layers": 2}
THREE_TO_ONE = {
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention",
                    "full_attention", "sliding_attention"],
}  # fmt: skip
MIXED = {**TWO, **LOCAL, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": LOCAL,
    "qwen2": {},
    "qwen3": HEAD,
    "gemma2": {**HEAD, **LOCAL, "query_pre_attn_scalar": 12, "num_hidden_layers": 4},
    "gemma3_text": {**HEAD, **LOCAL, "query_pre_attn_scalar": 12, **THREE_TO_ONE},
    "phi3": {},
    "gpt2": {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 128, "n_inner": 80},
    "gpt_neox": PARTIAL,
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    "bloom": {"n_layer": 3, "n_head": 4},
    "olmo2": {},
    "cohere": {},
    "granite": {},
    "stablelm": PARTIAL,
    "starcoder2": {},
    "mixtral": {**MOE, "sliding_window": None},
    "qwen3_moe": {**HEAD, **MOE},
}
"""Options of each family beyond SIZES; the key is transformers' model_type."""

FURTHER: dict[str, dict[str, Any]] = {
    "apertus": TWO,
    "biogpt": TWO,
    "codegen": {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 128, "rotary_dim": 8},
    "cohere2": {**HEAD, **MIXED},
    "ctrl": {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 128, "dff": 80},
    "dots1": {
        **HEAD, **MOE, **TWO, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1,
    },
    "ernie4_5_moe": {**HEAD, **MOE, **TWO, "moe_num_experts": 4, "moe_k": 2},
    "exaone4": MIXED,
    "gemma": {**HEAD, **TWO},
    "glm4": {**HEAD, **TWO, **PARTIAL},
    "gpt_bigcode": {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 128, "n_inner": 80},
    "gpt_neo": {
        "num_layers": 2, "num_hidden_layers": None, "num_heads": 4, "window_size": 8,
        "attention_types": [[["global", "local"], 1]],
    },
    "gptj": {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 128, "rotary_dim": 8},
    "granitemoe": {**MOE, **TWO},
    "helium": {**HEAD, **TWO},
    "hunyuan_v1_dense": {**HEAD, **TWO},
    "modernbert-decoder": {**TWO, "local_attention": 8, "global_attn_every_n_layers": 2},
    "mpt": {"d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    "nanochat": TWO,
    "nemotron": {**TWO, **PARTIAL},
    "olmo": {**TWO, "clip_qkv": 0.5},
    "olmo3": MIXED,
    "persimmon": {**TWO, **PARTIAL},
    "phi": {**TWO, **PARTIAL},
    "qwen2_moe": {**MOE, **TWO, "shared_expert_intermediate_size": 32},
    "smollm3": {**TWO, "no_rope_layer_interval": 2},
    "xglm": {"d_model": 48, "attention_heads": 4, "num_layers": 2, "ffn_dim": 80},
}  # fmt: skip
"""Families compared end to end only: their blocks are other arrangements of the same parts."""


def tiny_config(family: str, **overrides: Any) -> Any:
    """The transformers config of a tiny model. Raises KeyError for a family in no table."""
    import transformers

    options = {**SIZES, **{**FAMILIES, **FURTHER}[family], **overrides}
    known: Any = transformers.CONFIG_MAPPING[family]
    mapped = set(getattr(known, "attribute_map", {}).values())
    kept = {k: v for k, v in options.items() if v is not None or k == "sliding_window"}
    config = known(**kept)
    for key in mapped & set(kept):
        setattr(config, key, kept[key])
    return config


def tiny(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny random checkpoint (config.json and safetensors); returns its folder."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = tiny_config(family, **overrides)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder
