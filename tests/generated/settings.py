"""Everything a generated decoder can be, as one flat record."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Layer:
    """What may differ from block to block. `sees`: full, window, chunk, sinks, prefix, dilated."""

    sees: str = "full"
    size: int = 0
    """Window, chunk, prefix or stride, in positions."""
    sinks: int = 0
    theta: float = 10000.0
    turned: bool = True
    """Whether this block has the host's rotary embedding."""


@dataclass(frozen=True)
class Settings:
    """A decoder: sizes, parts, and how each part is spelled. The defaults are a plain Llama."""

    seed: int = 0
    # sizes
    hidden: int = 32
    vocabulary: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 8
    inner: int = 48
    longest: int = 192
    """Rows of learned tables and buffers."""
    layers: tuple[Layer, ...] = (Layer(), Layer())
    # parts
    norm: str = "rms"
    norm_bias: bool = False
    plus_one: bool = False
    epsilon: float = 1e-5
    place: str = "pre"
    """pre, post, sandwich."""
    parallel: bool = False
    qk_norm: bool = False
    biases: bool = False
    gated: bool = True
    activation: str = "silu"
    """silu, gelu, gelu_tanh, relu."""
    cap_scores: float = 0.0
    cap_logits: float = 0.0
    rotary: str = "half"
    """none, half, interleaved."""
    rotary_share: float = 1.0
    rotary_factor: float = 1.0
    learned: int = -1
    """Offset into a table of learned positions; -1: none."""
    slopes: str = ""
    """ALiBi: distance, keys (the same up to a shift), clipped."""
    clip: int = 40
    buckets: str = ""
    """Learned relative bias: clipped, logarithmic."""
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    residual_scale: float = 1.0
    tied: bool = False
    head_bias: bool = False
    head: str = "lm"
    """lm, two_labels, token_labels, none."""
    # spelling
    opset: int = 21
    names: str = "plain"
    constants: str = "initializers"
    half: bool = False
    stored_half: bool = False
    half_norms: bool = False
    """Scales of norms are fp16 behind a Cast."""
    norm_spelled: str = "div"
    """div, reciprocal, power, square_sum, op, simplified, skip, skip_default."""
    rotary_spelled: str = "angles"
    """angles, matmul (angles as transformers computes them), tables, op, ms."""
    rotate_spelled: str = "slice"
    """slice, split, pieces."""
    rows_first: bool = False
    """Rotary before the heads are transposed."""
    linear: str = "matmul"
    """matmul, transposed, gemm (over flattened rows), gemm_transposed, dynamic (quantized)."""
    packed: bool = False
    """One projection for q, k and v."""
    attention: str = "decomposed"
    """decomposed, op4, op3, gqa."""
    repeated: str = "expand"
    """expand, grouped, tile."""
    flat_scores: bool = False
    """Products of three-dimensional heads [B * h, N, D]."""
    softmax: str = "op"
    """op, exp (written out)."""
    scaled: str = "scores"
    """scores, divided, query, both."""
    mask_from: str = "range"
    """range, positions, cumsum, trilu, buffer, input, none."""
    mask_spelled: str = "where"
    """where, bias, arithmetic."""
    fill: float = -3.4e38
    compared: str = "key<=query"
    """key<=query, query>=key, not_greater, difference."""
    shared_mask: bool = True
    # ports
    ids: str = "int64"
    port_names: str = "usual"
    cached: bool = False
    cache: str = "concat"
    """concat; inside (the Attention node holds it); rows_first (concat of [B, P, kv_heads, D])."""
    padding: str = ""
    """The mask input of rank two: int64, int32, bool, float32."""
    mask_input: str = ""
    """A mask input of rank four: bool, float32."""
    positions: str = "input"
    """input, input32, range, cumsum."""
    keep_logits: bool = False
    """An input num_logits_to_keep."""
    logits_at: int = 0
    extra_outputs: bool = False
    # what a decoder should not have
    odd: tuple[str, ...] = ()
    odd_size: int = 40
    special: tuple[int, ...] = field(default=(0, 1, 2))
    """Ids that the graph may compare tokens with."""

    @property
    def features(self) -> list[str]:
        """What is not the default, as `name=value`; per-block settings as a set."""
        plain = Settings()
        sizes = {"longest", "hidden", "vocabulary", "inner", "clip", "odd_size", "special"}
        skip = {"seed", "odd", "layers", *sizes}
        rows = [f"odd={kind}" for kind in self.odd]
        rows += [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self)
            if f.name not in skip and getattr(self, f.name) != getattr(plain, f.name)
        ]  # fmt: skip
        kinds = sorted({f"sees={x.sees}" for x in self.layers})
        return [*kinds, *rows, f"blocks={len(self.layers)}"]

    @property
    def constants_of_positions(self) -> int:
        """The largest distance or position the graph knows of."""
        sizes = [layer.size + layer.sinks for layer in self.layers]
        clipped = self.clip if self.slopes == "clipped" or self.buckets else 0
        return max(*sizes, clipped, self.odd_size if self.odd else 0, 8)
