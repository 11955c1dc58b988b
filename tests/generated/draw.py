"""Random settings: every choice is independent where the parts allow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from tests.generated.settings import Layer, Settings

T = TypeVar("T")
ODD = (
    "pad_keys", "bidirectional", "clip_scores", "remask", "log_query", "token_bias",
    "softmax_queries", "softmax_heads", "reversed", "order", "parity", "second_table", "last_row",
    "token_types", "image_mask", "batch_mean", "row_mean", "running_sum", "token_shift",
    "held_positions", "halved_positions", "length_scale", "sink_logit", "softmax_one", "strict",
    "anticausal", "place_values", "pad_zeroed", "scaled_weights",
    "counted_without_pads", "cache_switch", "place_stream", "kinked_tables", "longrope",
)  # fmt: skip
"""What a decoder may have that graftline must get right or refuse."""
ODD_SHARE = 0.3
BOLD = (0.12, 0.3, 1.0)
"""How many of the choices of a seed are kept: few, some, all; the others are a plain Llama's. A
host of which every part is unusual is refused for one of them, and says nothing of the others."""
KEPT = ("seed", "hidden", "vocabulary", "heads", "kv_heads", "head_size", "inner", "opset")


class Draw:
    """Choices of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def of(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options."""
        shares = None if weights is None else np.asarray(weights) / np.sum(weights)
        return options[int(self.rng.choice(len(options), p=shares))]

    def chance(self, share: float) -> bool:
        """True with that probability."""
        return bool(self.rng.random() < share)

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))


def draw(seed: int) -> Settings:
    """The settings of a seed."""
    d = Draw(seed)
    s = _sizes(d, seed)
    s = _parts(d, s)
    s = _ports(d, s)
    s = _spelling(d, s)
    s = _tamed(d, _masks(d, s), d.of(BOLD, (4, 4, 2)))
    if d.chance(ODD_SHARE):
        s = replace(s, odd=(d.of(ODD),), odd_size=d.between(5, 60))
    return settle(s)


def _tamed(d: Draw, s: Settings, bold: float) -> Settings:
    """Each choice with probability `bold`, the default otherwise."""
    plain = Settings()
    back = {
        f.name: getattr(plain, f.name) for f in fields(s)
        if f.name not in (*KEPT, "layers", "odd", "odd_size") and not d.chance(bold)
    }  # fmt: skip
    if not d.chance(max(bold, 0.4)):
        back["layers"] = tuple(Layer() for _ in s.layers)
    return replace(s, **back)


def _sizes(d: Draw, seed: int) -> Settings:
    kv_heads = d.of((1, 2, 3, 4), (3, 4, 1, 2))
    return Settings(
        seed=seed, hidden=d.of((16, 24, 32, 40, 48)), vocabulary=d.between(40, 300),
        heads=kv_heads * d.of((1, 2, 3), (3, 4, 1)), kv_heads=kv_heads,
        head_size=d.of((4, 6, 8, 12, 16), (1, 1, 4, 1, 3)), inner=d.of((24, 40, 64)),
    )  # fmt: skip


def _parts(d: Draw, s: Settings) -> Settings:
    norm = d.of(("rms", "layer"), (3, 2))
    plain = d.chance(0.4)
    return replace(
        s, norm=norm, norm_bias=norm == "layer" and d.chance(0.7), plus_one=d.chance(0.15),
        epsilon=d.of((1e-5, 1e-6, 1e-12, 1e-3)), place=d.of(("pre", "post", "sandwich"), (6, 1, 1)),
        parallel=d.chance(0.15), qk_norm=d.chance(0.2), biases=d.chance(0.4), gated=not plain,
        activation=d.of(("silu", "gelu", "gelu_tanh", "relu")),
        cap_scores=d.of((0.0, 5.0, 30.0), (6, 1, 1)), cap_logits=d.of((0.0, 10.0), (6, 1)),
        embedding_scale=d.of((1.0, 5.66, 0.5), (5, 1, 1)), tied=d.chance(0.3),
        logit_scale=d.of((1.0, 0.25), (6, 1)), residual_scale=d.of((1.0, 0.6), (7, 1)),
        head_bias=d.chance(0.15),
    )  # fmt: skip


def _places(d: Draw, s: Settings) -> Settings:
    """Where positions enter: rotary, learned table, ALiBi, relative bias, or nowhere."""
    kind = d.of(("rotary", "learned", "alibi", "relative", "none", "both"), (8, 2, 2, 2, 1, 1))
    if kind in ("rotary", "both"):
        s = replace(
            s, rotary=d.of(("half", "interleaved"), (3, 2)),
            rotary_share=d.of((1.0, 0.5, 0.25), (4, 1, 1)), rotary_factor=d.of((1.0, 4.0), (4, 1)),
        )  # fmt: skip
    else:
        s = replace(s, rotary="none")
    if kind in ("learned", "both"):
        s = replace(s, learned=d.of((0, 2)))
    if kind == "alibi":
        s = replace(s, slopes=d.of(("distance", "keys", "clipped")), clip=d.between(10, 50))
    if kind == "relative":
        s = replace(s, buckets=d.of(("clipped", "logarithmic")), clip=d.between(12, 50))
    return s


def _ports(d: Draw, s: Settings) -> Settings:
    s = _places(d, s)
    padding = d.of(("", "int64", "int32", "bool", "float32"), (3, 4, 1, 1, 1))
    positions = d.of(("input", "input32", "range", "cumsum"), (4, 1, 3, 1))
    return replace(
        s, cached=d.chance(0.35), cache=d.of(("concat", "inside", "rows_first"), (3, 1, 1)),
        padding=padding, positions=positions,
        mask_input=d.of(("", "bool", "float32"), (6, 1, 1)), ids=d.of(("int64", "int32"), (3, 1)),
        port_names=d.of(("usual", "own", "numbered"), (3, 1, 1)), keep_logits=d.chance(0.1),
        logits_at=d.of((0, 1, 9), (4, 1, 1)), extra_outputs=d.chance(0.2),
    )  # fmt: skip


def _spelling(d: Draw, s: Settings) -> Settings:
    opset = d.between(18, 24)
    kinds, shares = ["decomposed", "gqa"], [6.0, 0.6]
    if opset >= 23:
        kinds, shares = [*kinds, "op4", "op3"], [*shares, 4, 2]
    return replace(
        s, opset=opset, names=d.of(("plain", "torchscript", "usual"), (4, 2, 1)),
        constants=d.of(("initializers", "nodes"), (3, 1)), half=d.chance(0.08),
        stored_half=d.chance(0.1), half_norms=d.chance(0.06),
        norm_spelled=d.of(
            ("div", "reciprocal", "power", "square_sum", "op", "simplified", "skip",
             "skip_default"), (3, 2, 2, 1, 4, 0.7, 0.7, 0.3)),
        rotary_spelled=d.of(("angles", "matmul", "tables", "op", "ms"), (3, 2, 2, 2, 0.6)),
        rotate_spelled=d.of(("slice", "split", "pieces")), rows_first=d.chance(0.3),
        linear=d.of(("matmul", "transposed", "gemm", "gemm_transposed"), (4, 2, 1, 1)),
        packed=d.chance(0.3), attention=d.of(kinds, shares),
        repeated=d.of(("expand", "grouped", "tile"), (4, 1, 1)), flat_scores=d.chance(0.1),
        softmax=d.of(("op", "exp"), (9, 1)),
        scaled=d.of(("scores", "divided", "query", "both"), (4, 2, 1, 1)),
        mask_spelled=d.of(("where", "bias", "arithmetic"), (3, 3, 1)),
        fill=d.of((-3.4e38, -1e9, -1e4, float("-inf")), (4, 2, 1, 1)),
        compared=d.of(("key<=query", "query>=key", "not_greater", "difference")),
        shared_mask=d.chance(0.7),
        mask_from=d.of(("range", "positions", "cumsum", "trilu", "buffer", "input"),
                       (5, 2, 1, 2, 2, 0.6)),
    )  # fmt: skip


def _layer(d: Draw, kinds: Sequence[str], shares: Sequence[float]) -> Layer:
    sees = d.of(kinds, shares)
    sizes = {"full": (0, 0), "dilated": (2, 5), "chunk": (6, 40), "prefix": (4, 30)}
    size = d.between(*sizes.get(sees, (5, 40)))
    return Layer(sees, size, d.between(1, 6) if sees == "sinks" else 0)


def _masks(d: Draw, s: Settings) -> Settings:
    """Blocks of one kind, or a pattern of two; sometimes another theta or no rotary in one kind."""
    kinds = ("full", "window", "chunk", "sinks", "prefix", "dilated")
    shares: tuple[float, ...] = (6, 3, 1, 1, 0.5, 0.5)
    count = d.between(1, 4)
    first, second = (_layer(d, kinds, shares) for _ in range(2))
    mixed = count > 1 and d.chance(0.35)
    if mixed:
        second = replace(
            second, theta=d.of((10000.0, 500.0), (1, 2)), turned=not d.chance(0.2),
        )  # fmt: skip
    period = d.between(2, 3)
    layers = [second if mixed and i % period == period - 1 else first for i in range(count)]
    return replace(s, layers=tuple(layers))


def settle(s: Settings) -> Settings:
    """The nearest settings whose parts go together. Only what cannot be written is changed."""
    needs: dict[str, Any] = {"norm_bias": s.norm_bias and s.norm == "layer"}
    if s.place != "pre":
        needs["parallel"] = False
    if any(x in s.odd for x in ("clip_scores", "remask", "softmax_queries", "softmax_heads",
                                "length_scale", "sink_logit", "softmax_one", "scaled_weights")):
        needs["attention"] = "decomposed"
    if "softmax_one" in s.odd:
        needs["softmax"] = "exp"
    if "strict" in s.odd or "softmax_heads" in s.odd:  # all of a sum may be hidden
        needs |= _finite_when_all_is_hidden(s)
    if "longrope" in s.odd:
        needs |= {"rotary": "half", "rotary_spelled": "angles"}
    if "kinked_tables" in s.odd:
        needs |= {"rotary": "half", "rotary_spelled": "tables"}
    if "counted_without_pads" in s.odd:
        needs |= {"cached": False, "learned": max(s.learned, 0)}
    if "bidirectional" in s.odd or "image_mask" in s.odd:
        needs |= {"cached": False}
    s = replace(s, **needs)
    if s.attention == "gqa":
        s = _for_gqa(s)
    if not s.cached or (s.cache == "inside" and s.attention not in ("op4", "op3")):
        s = replace(s, cache="concat")
    if s.attention in ("op4", "op3"):
        s = replace(s, opset=max(s.opset, 23), flat_scores=False)
    return _for_masks(s)


def _finite_when_all_is_hidden(s: Settings) -> dict[str, Any]:
    """Masks whose numbers, and the sum of two, are finite: a softmax over -inf alone is none."""
    needs: dict[str, Any] = {}
    twice = s.mask_input == "float32"
    if np.isinf(s.fill) or (twice and np.isinf(np.float32(2 * s.fill))):
        needs["fill"] = -1e9
    if twice and s.half:
        needs["mask_input"] = "bool"  # two masks of fp16 add up to -inf
    return needs


def _for_gqa(s: Settings) -> Settings:
    """GroupQueryAttention has its own mask, positions and cache."""
    kinds = {"full", "window"}
    layers = tuple(x if x.sees in kinds else Layer(theta=x.theta) for x in s.layers)
    return replace(
        s, cached=True, cache="concat", padding=s.padding or "int64", positions="cumsum",
        qk_norm=False, slopes="", buckets="", mask_input="", layers=layers, head_size=16,
        rotary_share=1.0,
        odd=tuple(x for x in s.odd if x in (
            "order", "parity", "last_row", "batch_mean", "row_mean", "running_sum", "token_shift",
            "token_types", "second_table", "pad_zeroed")),
    )  # fmt: skip


def _for_masks(s: Settings) -> Settings:
    """Masks from where they can come from."""
    source = s.mask_from
    if source == "trilu" and any(x.sees not in ("full", "window") for x in s.layers):
        source = "range"
    if source == "input" and (any(x.sees != "full" for x in s.layers) or s.attention == "gqa"):
        source = "range"
    if "strict" in s.odd or "anticausal" in s.odd or "remask" in s.odd:
        source = "range"
    if source == "positions" and (s.cached or not s.positions.startswith("input")):
        source = "range"
    needs: dict[str, Any] = {}
    if source == "input":
        needs["mask_input"] = s.mask_input or "float32"
    if source == "cumsum" or s.positions == "cumsum":
        needs["padding"] = s.padding or "int64"
    if "pad_keys" in s.odd:
        needs["cached"] = False
        source = "range" if source == "input" else source
        if source == "trilu" and s.attention != "decomposed":
            needs["padding"] = s.padding or "int64"
    if s.norm_spelled == "op" and s.opset < 23 and s.norm == "rms":
        needs["norm_spelled"] = "div"
    if s.rotary_spelled == "op" and s.opset < 23:
        needs["rotary_spelled"] = "angles"
    if s.rotary_spelled == "ms" and (s.head_size % 8 or s.rotary_share < 1):
        needs["rotary_spelled"] = "tables"
    return replace(s, mask_from=source, **needs)
