"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) of a head's layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graftline.models.heads.block import Rope, read_rope
from graftline.models.heads.config import Config
from graftline.models.heads.files import Taken

MARK = "kv_a_proj_with_mqa"
"""The projection that only such attention has."""


@dataclass(frozen=True)
class Latent:
    """Keys and values of all heads are made of one vector of `rank` numbers per position (normed),
    and of `rope.size` rotary numbers that all heads share. Queries are made of a vector of
    `query_rank` (None: directly). A head's query and key: `plain` numbers, then the rotary ones.
    Scores are divided by the root of their number and, with yarn scaling whose mscale_all_dim is m,
    multiplied by (0.1 m ln(factor) + 1) squared."""

    heads: int
    query_rank: int | None
    rank: int
    plain: int
    value: int
    rope: Rope


def is_latent(taken: Taken, layer: str) -> bool:
    """Whether a layer's attention is of this kind."""
    return taken.files.has(f"{layer}.self_attn.{MARK}.weight")


def take_latent(taken: Taken, config: Config, layer: str, here: str, hidden: int) -> Latent:
    """The attention of a layer. Raises CheckpointError.

    Tensors: query_down [query_rank, H], query_down_norm, query_up [heads x size, query_rank] or
    query [heads x size, H]; key_value_down [rank + rotary, H], key_value_norm [rank],
    key_value_up [heads x (plain + value), rank], output [H, heads x value], all with .weight.
    """
    heads, rank = config.whole("num_attention_heads"), config.whole("kv_lora_rank")
    plain, rotary = config.whole("qk_nope_head_dim"), config.whole("qk_rope_head_dim")
    value = config.whole("v_head_dim")
    low = config.whole("q_lora_rank") if config.has("q_lora_rank") else None
    interleaved = config.flag("rope_interleave", True)
    config.must("attention_bias", False, "latent attention with biases")
    raw = {k: v for k, v in config.raw.items() if k != "rope_interleave"}
    rope = read_rope(replace(config, raw=raw), rotary)
    size, place = plain + rotary, f"{layer}.self_attn"
    shapes = {
        MARK: ("key_value_down", [rank + rotary, hidden]),
        "kv_a_layernorm": ("key_value_norm", [rank]),
        "kv_b_proj": ("key_value_up", [heads * (plain + value), rank]),
        "o_proj": ("output", [hidden, heads * value]),
    }
    if low is None:
        shapes["q_proj"] = ("query", [heads * size, hidden])
    else:
        shapes["q_a_proj"] = ("query_down", [low, hidden])
        shapes["q_a_layernorm"] = ("query_down_norm", [low])
        shapes["q_b_proj"] = ("query_up", [heads * size, low])
    for key, (name, shape) in shapes.items():
        taken.take(f"{place}.{key}.weight", f"{here}.{name}.weight", shape)
    return Latent(heads, low, rank, plain, value, replace(rope, interleaved=interleaved))
