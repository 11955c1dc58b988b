"""The metadata of a GGUF file: each key of its architecture becomes part of the config, is known
to be irrelevant, or is refused by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

from graftline.errors import CheckpointError

NAMES: Mapping[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
    ),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
}  # fmt: skip
"""What a key is called in configs: the first name that the config's class knows."""
NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "pooling_type": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "expert_weights_scale": 1.0,
    "expert_gating_func": 1,
    "leading_dense_block_count": 0,
    "nextn_predict_layers": 0,
}
"""Values that say what a decoder does anyway: where no config has the key, only these pass."""
IRRELEVANT: Mapping[str, str] = {
    "tensor_data_layout": "the order of rows that the reader of the architecture undoes",
    "rope.scaling.finetuned": "a note about training",
}
OWN = (
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
)
"""Keys that `settle_keys` reads by itself."""
CLOSE = 1e-6
"""GGUF keeps fp32: two numbers are the same up to its rounding."""


def settle_keys(
    config: Any, keys: Mapping[str, Any], mapped: Mapping[str, str | None], file: str
) -> None:
    """Bring the config in line with the file's own `keys` (the architecture's, without its name).

    `mapped` is what transformers reads of them, and as what. Rotary keys are `settle_rope`'s.
    Raises CheckpointError naming the first key that has no place in the config.
    """
    known = _known(config)
    for key, value in keys.items():
        if key.startswith("rope.") or key in IRRELEVANT or key in OWN:
            continue
        _place(config, key, value, (mapped.get(key), *NAMES.get(key, ())), known, file)
    _settle_head(config, keys, mapped, known, file)
    _settle_window(config, keys, file)


def _known(config: Any) -> set[str]:
    """The names a config's class knows, in its own words and in the standard ones."""
    return {*type(config)().to_dict(), *type(config).attribute_map}


def _place(
    config: Any,
    key: str,
    value: Any,
    names: Collection[str | None],
    known: Collection[str],
    file: str,
) -> None:
    one = _single(key, value, file)
    name = next((n for n in names if n in known), None)
    if name is None:
        if key not in NEUTRAL or not _same(one, NEUTRAL[key]):
            raise CheckpointError(
                f"{file}: '{key}' = {one!r} has no place in transformers' {type(config).__name__}, "
                "so the model would compute something else; give its Hugging Face folder"
            )
    elif not _same(getattr(config, name), one):
        setattr(config, name, one)


def _single(key: str, value: Any, file: str) -> Any:
    """The value, of a list the one that all its blocks share."""
    if not isinstance(value, list):
        return value
    values = cast("list[Any]", value)
    if len(set(values)) != 1:
        raise CheckpointError(
            f"{file}: '{key}' differs from block to block, which transformers' reader does not "
            "know; give its Hugging Face folder"
        )
    return values[0]


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(mine, theirs, rel_tol=CLOSE)
    return mine == theirs


def _settle_head(
    config: Any,
    keys: Mapping[str, Any],
    mapped: Mapping[str, str | None],
    known: Collection[str],
    file: str,
) -> None:
    """The head's size: its own key's, or the hidden size over the heads, never the rotary one."""
    whole = int(config.hidden_size) // int(config.num_attention_heads)
    size = int(_single("attention.key_length", keys.get("attention.key_length", whole), file))
    other = mapped.get("attention.key_length")
    if other in known and other != "head_dim":
        return
    if "head_dim" in known:
        config.head_dim = size
    elif size != whole:
        raise CheckpointError(f"{file}: 'attention.key_length' = {size}, the config has {whole}")
    if (value := int(keys.get("attention.value_length", size))) != size:
        raise CheckpointError(
            f"{file}: 'attention.value_length' = {value} differs from the keys' {size}, which "
            "transformers' reader does not know; give its Hugging Face folder"
        )
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and not _same(float(scalar), float(size)):
        raise CheckpointError(
            f"{file}: heads of {size}, but transformers scales their scores by "
            f"query_pre_attn_scalar={scalar}, which the file does not give; give its Hugging Face "
            "folder"
        )


def _settle_window(config: Any, keys: Mapping[str, Any], file: str) -> None:
    """The sliding window and which layers have one."""
    window = keys.get("attention.sliding_window")
    if window is not None:
        unused = getattr(config, "use_sliding_window", True) is False
        if not hasattr(config, "sliding_window") or unused:
            if 0 < int(window) < int(config.max_position_embeddings):
                raise CheckpointError(
                    f"{file}: 'attention.sliding_window' = {window}, but transformers' "
                    f"{type(config).__name__} has none by the file; give its Hugging Face folder"
                )
        else:
            config.sliding_window = int(window) or None
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is None:
        return
    count = int(config.num_hidden_layers)
    local = (
        [bool(x) for x in cast("list[Any]", pattern)]
        if isinstance(pattern, list)
        else [(i + 1) % int(pattern) != 0 for i in range(count)]
    )
    types = ["sliding_attention" if x else "full_attention" for x in local]
    if getattr(config, "layer_types", None) is None or len(types) != count:
        raise CheckpointError(
            f"{file}: 'attention.sliding_window_pattern' has no place in transformers' "
            f"{type(config).__name__}; give its Hugging Face folder"
        )
    config.layer_types = types
