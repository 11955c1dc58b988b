"""The rotary embedding of a GGUF file, as llama.cpp computes it, in transformers' rope_parameters.

llama.cpp turns pair i of position p by p * base^(-2i/d) / factor_i * scale: `factor_i` from the
tensor rope_freqs.weight (written for llama3 scaling) or the two rope_factors tensors (longrope),
`scale` = 1 / rope.scaling.factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from graftline.errors import CheckpointError

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FREQUENCIES, LONG, SHORT)
SCALING = "rope.scaling."
READ = {
    "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa",
    "rope.scale_linear", *(SCALING + k for k in (
        "type", "factor", "attn_factor", "original_context_length", "finetuned",
        "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
        "yarn_beta_slow",
    )),
}  # fmt: skip

Floats = list[float]


def settle_rope(
    config: Any, keys: Mapping[str, Any], factors: Mapping[str, Any], file: str
) -> None:
    """Give the config the rotary embedding that `keys` (the architecture's own, without its name)
    and the tensors in `factors` describe. Raises CheckpointError for what it cannot say."""
    given = {k: v for k, v in keys.items() if k.startswith("rope.")}
    strange = sorted(given.keys() - READ)
    if strange:
        raise _refusal(file, strange[0], given[strange[0]])
    rope: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    if rope is None:
        if given or factors:
            raise _refusal(file, sorted([*given, *factors])[0], "given")
        return
    target, local = _sets(rope)
    if "rope.freq_base" in keys:
        target["rope_theta"] = float(keys["rope.freq_base"])
    if "rope.freq_base_swa" in keys:
        if local is None:
            raise _refusal(file, "rope.freq_base_swa", keys["rope.freq_base_swa"])
        local["rope_theta"] = float(keys["rope.freq_base_swa"])
    width = _width(config, keys, target, local, file)
    target.update(_scaling(config, keys, factors, width, file))
    config.rope_parameters = rope


def _sets(rope: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The parameters of full attention, and those of windowed layers where they differ."""
    if "full_attention" in rope:
        return rope["full_attention"], rope.get("sliding_attention")
    return rope, None


def _width(
    config: Any,
    keys: Mapping[str, Any],
    target: dict[str, Any],
    local: dict[str, Any] | None,
    file: str,
) -> int:
    """Dimensions of a head that are turned; part of one becomes partial_rotary_factor."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(keys.get("rope.dimension_count", head))
    for key in ("rope.dimension_count", "rope.dimension_count_swa"):
        if (value := int(keys.get(key, width))) != width or (local is not None and value != head):
            raise _refusal(file, key, value)
    if not 0 < width <= head or int(head * (width / head)) != width:
        raise _refusal(file, "rope.dimension_count", width)
    if width != head or "partial_rotary_factor" in target:
        target["partial_rotary_factor"] = width / head
    return width


def _scaling(
    config: Any, keys: Mapping[str, Any], factors: Mapping[str, Any], width: int, file: str
) -> dict[str, Any]:
    """rope_type and what belongs to it; "linear" unless the file names another, as in llama.cpp."""
    kind = str(keys.get(SCALING + "type", "linear"))
    factor = float(keys.get(SCALING + "factor", 0.0) or keys.get("rope.scale_linear", 0.0)) or 1.0
    attention = float(keys.get(SCALING + "attn_factor", 1.0))
    original = int(keys.get(SCALING + "original_context_length", config.max_position_embeddings))
    if kind == "longrope" or {LONG, SHORT} & factors.keys():
        if kind not in ("longrope", "linear") or factor != 1.0 or FREQUENCIES in factors:
            raise _refusal(file, SCALING + "type", kind)
        short, long = (_factors(name, factors, width, file) for name in (SHORT, LONG))
        return _longrope(short, long, original, attention)
    if FREQUENCIES in factors:
        values = [f * factor for f in _factors(FREQUENCIES, factors, width, file)]
        if kind not in ("linear", "none") or attention != 1.0:
            raise _refusal(file, f"{FREQUENCIES} with {SCALING}type", kind)
        return {} if set(values) == {1.0} else _longrope(values, values, original, 1.0)
    if kind == "yarn":
        return _yarn(keys, factor, attention, original, file)
    if attention != 1.0:
        raise _refusal(file, SCALING + "attn_factor", attention)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind != "linear":
        raise _refusal(file, SCALING + "type", kind)
    return {"rope_type": "linear", "factor": factor}


def _yarn(
    keys: Mapping[str, Any], factor: float, attention: float, original: int, file: str
) -> dict[str, Any]:
    neutral = {"yarn_log_multiplier": 0.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0}
    for name, value in neutral.items():
        if (found := float(keys.get(SCALING + name, value))) != value:
            raise _refusal(file, SCALING + name, found)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": float(keys.get(SCALING + "yarn_beta_fast", 32.0)),
        "beta_slow": float(keys.get(SCALING + "yarn_beta_slow", 1.0)),
        "attention_factor": attention * (1.0 + 0.1 * math.log(max(factor, 1.0))),
    }


def _longrope(short: Floats, long: Floats, original: int, attention: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _factors(name: str, factors: Mapping[str, Any], width: int, file: str) -> Floats:
    """One factor for each pair of turned dimensions. Raises CheckpointError for anything else."""
    if name not in factors:
        raise CheckpointError(f"{file}: longrope without '{name}'; download it again")
    values = np.asarray(factors[name], np.float32).reshape(-1)
    if len(values) != width // 2 or not bool((np.isfinite(values) & (values > 0)).all()):
        raise CheckpointError(
            f"{file}: '{name}' does not hold {width // 2} positive factors, one per pair of the "
            f"{width} "
            "rotary dimensions; download it again"
        )
    return [float(v) for v in values]


def _refusal(file: str, key: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{file}: '{key}' = {value!r} is a rotary embedding that transformers' reader cannot be "
        "given; give its Hugging Face folder"
    )
