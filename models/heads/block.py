"""A decoder layer of a draft head: its numbers by the config, its tensors under our names.

Every family's layers are the same parts: attention with rotary positions, a gated MLP, RMS norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graftline.models.heads.config import Config
from graftline.models.heads.files import Taken

ROPES: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "llama3": frozenset({
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    }),
    "yarn": frozenset({
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "attention_factor",
    }),
}  # fmt: skip
"""Kinds of rotary scaling, and the numbers of each."""


TEXT_ONLY = ("mrope_section", "mrope_interleaved")
"""How three positions share a head's numbers (`mrope`): for text all three are equal."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions over the first `size` numbers of a head, with frequencies of base `theta`;
    `kind` and its `numbers` scale them as in transformers. `interleaved`: pairs lie side by side.
    """

    theta: float
    size: int
    kind: str = "default"
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    interleaved: bool = False


@dataclass(frozen=True)
class Block:
    """The sizes of a decoder layer. `norm_offset` is added to the weights of its norms (1 where a
    file stores w - 1). `query_norm`: RMS norms over each query's and key's numbers. `gated`: the
    attention's output is multiplied by the sigmoid of a gate that the query projection also gives
    ([heads, 2, head_size], query first)."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    epsilon: float
    rope: Rope
    norm_offset: float = 0.0
    query_norm: bool = False
    gated: bool = False
    bias: bool = False


def read_block(config: Config, norm_offset: float = 0.0) -> Block:
    """The numbers of a layer by a config of transformers' names. Raises CheckpointError."""
    hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    kv_heads = config.whole("num_key_value_heads", heads)
    if not config.has("head_dim") and hidden % heads:
        config.refuse(f"hidden_size={hidden} is not divisible by num_attention_heads={heads}")
    if heads % kv_heads:
        config.refuse(f"num_attention_heads={heads} is not divisible by {kv_heads} KV heads")
    head_size = config.whole("head_dim", max(1, hidden // heads))
    config.choice("hidden_act", "silu", ("silu",))
    config.must("mlp_bias", False, "MLPs with a bias")
    return Block(
        hidden, heads, kv_heads, head_size, config.whole("intermediate_size"),
        config.number("rms_norm_eps", 1e-6), read_rope(config, head_size), norm_offset,
    )  # fmt: skip


def read_rope(config: Config, head_size: int) -> Rope:
    """The rotary positions by `rope_parameters`, or `rope_theta` and `rope_scaling`."""
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    scaling = config.inner(key)
    config.read |= {"rope_parameters", "rope_scaling"}
    kind = str(scaling.raw.get("rope_type") or scaling.raw.get("type") or "default")
    kind = "default" if kind == "mrope" else kind
    if kind not in ROPES:
        scaling.refuse(f"rope_type={kind!r} is not hosted; known: {', '.join(sorted(ROPES))}")
    theta = _theta(config, scaling)
    part = _part(config, scaling)
    config.must("rope_interleave", False, "interleaved rotary pairs")
    scaling.must("truncate", True, "yarn without rounding of its range")
    scaling.read |= {"rope_type", "type"}
    numbers = {k: scaling.number(k) for k in sorted(ROPES[kind]) if scaling.has(k)}
    scaling.done(TEXT_ONLY)
    return Rope(theta, int(head_size * part), kind, numbers)


def _theta(config: Config, scaling: Config) -> float:
    places = [c for c in (scaling, config) if c.has("rope_theta")]
    values = {c.number("rope_theta") for c in places}
    if len(values) > 1:
        config.refuse("rope_theta and rope_parameters name different bases")
    if not values:
        config.decide("config.json has no rope_theta: 10000, transformers' default")
    return values.pop() if values else 10000.0


def _part(config: Config, scaling: Config) -> float:
    values = {
        c.number("partial_rotary_factor")
        for c in (scaling, config)
        if c.has("partial_rotary_factor")
    }
    part = values.pop() if values else 1.0
    if values or not 0 < part <= 1:
        config.refuse(f"partial_rotary_factor={part} and {sorted(values)} cannot be understood")
    return part


def read_windows(config: Config, layers: int) -> tuple[int, ...]:
    """How many positions each layer attends to, its own included; 0: all. Raises CheckpointError
    where the config does not say it per layer."""
    config.read |= {"layer_types", "sliding_window", "use_sliding_window"}
    kinds = config.raw.get("layer_types")
    on = config.flag("use_sliding_window", kinds is not None and config.has("sliding_window"))
    if kinds is None and on:
        config.refuse("use_sliding_window=true without layer_types does not say which layers")
    kinds = ["full_attention"] * layers if kinds is None else kinds
    known = {"full_attention", "sliding_attention"}
    if not isinstance(kinds, list) or len(kinds) != layers or not known.issuperset(kinds):
        config.refuse(f"layer_types={kinds!r} are not {layers} of {' and '.join(sorted(known))}")
    if "sliding_attention" in kinds and not on:
        config.refuse("layer_types names sliding attention, but no window is on")
    return tuple(config.whole("sliding_window") if k == "sliding_attention" else 0 for k in kinds)


PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


@dataclass(frozen=True)
class Layer:
    """Where a layer's tensors lie: their prefix in the files, and ours; `width` is that of the
    attention's input, `norms` the file's and our names of its norms over `hidden` numbers."""

    there: str
    here: str
    width: int
    norms: Mapping[str, str]
    attention: str = "self_attn"


ORDINARY = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def take_layer(taken: Taken, block: Block, layer: Layer, mlp: bool = True) -> None:
    """A layer's attention, norms and (with `mlp`) gated MLP. Raises CheckpointError."""
    for there, here in layer.norms.items():
        taken.take(f"{layer.there}.{there}.weight", f"{layer.here}.{here}.weight", [block.hidden])
    _take_attention(taken, block, layer)
    if mlp:
        take_mlp(taken, f"{layer.there}.mlp", layer.here, block.hidden, block.mlp)


def _take_attention(taken: Taken, block: Block, layer: Layer) -> None:
    there, here = f"{layer.there}.{layer.attention}", layer.here
    rows = {"q_proj": block.heads * (2 if block.gated else 1)}
    for key, name in PROJECTIONS.items():
        size = rows.get(key, block.kv_heads) * block.head_size
        taken.take(f"{there}.{key}.weight", f"{here}.{name}.weight", [size, layer.width])
        if block.bias:
            taken.take(f"{there}.{key}.bias", f"{here}.{name}.bias", [size])
    shape = [block.hidden, block.heads * block.head_size]
    taken.take(f"{there}.o_proj.weight", f"{here}.output.weight", shape)
    taken.take_if(f"{there}.o_proj.bias", f"{here}.output.bias", [block.hidden])
    if block.query_norm:
        for key, name in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
            taken.take(f"{there}.{key}.weight", f"{here}.{name}.weight", [block.head_size])


def take_mlp(taken: Taken, there: str, here: str, hidden: int, size: int) -> None:
    """A gated MLP: down(silu(gate(x)) * up(x)), without biases."""
    for key, name in MLP.items():
        shape = [hidden, size] if key == "down_proj" else [size, hidden]
        taken.take(f"{there}.{key}.weight", f"{here}.{name}.weight", shape)


def with_files(taken: Taken, config: Config, block: Block, attention: str) -> Block:
    """The block with what only the files say: biases, norms of queries, a gate. `attention` is the
    prefix of the first layer's. Raises CheckpointError where config and files contradict."""
    files = taken.files
    bias = files.has(f"{attention}.q_proj.bias")
    for key in ("attention_bias", "qkv_bias"):
        config.read.add(key)
        if config.has(key) and config.flag(key, bias) != bias:
            there, name = "holds" if bias else "has no", files.called(f"{attention}.q_proj.bias")
            config.refuse(f"{key}={config.raw[key]} but the file {there} '{name}'")
    rows = files.matrix(f"{attention}.q_proj.weight")[0]
    gated = rows == 2 * block.heads * block.head_size
    name = files.called(f"{attention}.q_proj.weight")
    config.must("attn_output_gate", gated, f"'{name}' has {rows} rows")
    changes: dict[str, Any] = {
        "bias": bias, "gated": gated, "query_norm": files.has(f"{attention}.q_norm.weight"),
    }  # fmt: skip
    return Block(**{**vars(block), **changes})
