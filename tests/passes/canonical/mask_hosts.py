"""Raw decoders of several layers whose masks are functions of query and key position."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from graftline.facts import DecoderFacts, write_facts
from tests.passes.canonical import raw_decoder
from tests.passes.canonical.raw_decoder import (
    ANGLES,
    HEADS,
    HIDDEN,
    KV,
    LONGEST,
    PIECES,
    SIZE,
    VOCABULARY,
)

LAYER = ("norm", "heads", "rotary", "repeat", "mask", "attend")
POSITIONS = 512
AXES = """
    size = Squeeze(length)
    order = Range(zero, size, one_step)
    key_at = Unsqueeze(order, axis_0)
    query_at = Unsqueeze(order, one_row)
    past = LessOrEqual(key_at, query_at)
    ago = Sub(query_at, key_at)
"""
SEEN = "\n    see = And(past, near)\n    bias = Where(see, nothing, lowest)\n"
BIASED = "\n    bias = Where(past, tilt, lowest)\n"
BUCKET = """
    back = Max(ago, zero)
    back_f = Cast<to = 1>(back)
    back_1 = Max(back_f, one)
    ratio = Div(back_1, exact_f)
    log = Log(ratio)
    part = Mul(log, per_log)
    part_i = Cast<to = 7>(part)
    far = Add(part_i, exact)
    far_1 = Min(far, last_bucket)
    short = Less(back, exact)
    bucket = Where(short, back, far_1)
    read = Gather(bias_table, bucket)
    by_head = Transpose<perm = [2, 0, 1]>(read)
    tilt = Unsqueeze(by_head, axis_0)
"""
MASKS = {
    "causal": raw_decoder.MASK,
    "chunked": AXES + """
    query_chunk = Div(query_at, n_24)
    key_chunk = Div(key_at, n_24)
    near = Equal(query_chunk, key_chunk)""" + SEEN,
    "window and sinks": AXES + """
    close = Less(ago, n_24)
    sink = Less(key_at, n_4)
    near = Or(close, sink)""" + SEEN,
    "prefix": AXES + """
    close = Less(ago, n_40)
    sink = Less(key_at, n_10)
    near = Or(close, sink)""" + SEEN,
    "window": AXES + "\n    near = Less(ago, n_40)" + SEEN,
    "dilated": AXES + """
    rest = Mod(ago, n_4)
    near = Equal(rest, zero)""" + SEEN,
    "alibi": AXES + """
    key_f = Cast<to = 1>(key_at)
    tilt = Mul(slopes, key_f)""" + BIASED,
    "alibi from the end": AXES + """
    back = Sub(size, one_step)
    from_end = Sub(key_at, back)
    key_f = Cast<to = 1>(from_end)
    tilt = Mul(slopes, key_f)""" + BIASED,
    "clipped alibi": AXES + """
    capped = Min(ago, n_40)
    away = Neg(capped)
    away_f = Cast<to = 1>(away)
    tilt = Mul(slopes, away_f)""" + BIASED,
    "bucketed": AXES + BUCKET + BIASED,
}  # fmt: skip
SPELLINGS = {
    "window of two triangles": """
    square_of = Concat<axis = 0>(length, length)
    ones = ConstantOfShape<value = float[1] {1.0}>(square_of)
    lower = Trilu<upper = 0>(ones)
    both = Trilu<upper = 1>(lower, n_39_back)
    see = Cast<to = 9>(both)
    bias = Where(see, nothing, lowest)
""",
    "causal buffer": """
    ends = Concat<axis = 0>(length, length)
    see = Slice(causal_buffer, two_zeros, ends, axes_23)
    bias = Where(see, nothing, lowest)
""",
    "alibi sliced from the end of a buffer": AXES + """
    from = Sub(n_512, length)
    tilt = Slice(alibi_buffer, from, n_512, axis_3)
""" + BIASED,
    "window added as -1e4": AXES + """
    near = Less(ago, n_40)
    see = And(past, near)
    see_f = Cast<to = 1>(see)
    hide_f = Sub(one, see_f)
    bias = Mul(hide_f, low_1e4)
""",
    "window of positions": """
    key_at = Unsqueeze(positions, row_1)
    query_at = Unsqueeze(positions, last)
    past = LessOrEqual(key_at, query_at)
    ago = Sub(query_at, key_at)
    near2 = Less(ago, n_40)
    see2 = And(past, near2)
    see = Unsqueeze(see2, row_1)
    bias = Where(see, nothing, lowest)
""",
    "causal by a running count": AXES + """
    seen_f = Cast<to = 1>(past)
    count = CumSum(seen_f, one_step)
    inverse = Sub(count, one)
    near = GreaterOrEqual(inverse, nothing)""" + SEEN,
    "formula: a window per head": AXES + """
    near = Less(ago, head_windows)""" + SEEN,
    "formula: a bias for every pair": AXES + """
    ends = Concat<axis = 0>(length, length)
    tilt = Slice(pair_buffer, two_zeros, ends, axes_23)
""" + BIASED,
    "formula: logarithm of the distance": AXES + """
    ago_f = Cast<to = 1>(ago)
    ago_1 = Add(ago_f, one)
    grown = Log(ago_1)
    part = Mul(grown, slopes)
    tilt = Neg(part)""" + BIASED,
    "formula: segments by a table": AXES + """
    segment = Slice(segments, row_0, length)
    query_in = Unsqueeze(segment, one_row)
    key_in = Unsqueeze(segment, axis_0)
    near = Equal(query_in, key_in)""" + SEEN,
    "formula: chunks added as -1e9": AXES + """
    query_chunk = Div(query_at, n_24)
    key_chunk = Div(key_at, n_24)
    near = Equal(query_chunk, key_chunk)
    see = And(past, near)
    see_f = Cast<to = 1>(see)
    hide_f = Sub(one, see_f)
    bias = Mul(hide_f, low_1e9)
""",
    "formula: what even positions see": AXES + """
    rest = Mod(query_at, n_2)
    even = Equal(rest, zero)
    close = Less(ago, n_4)
    near = Or(even, close)""" + SEEN,
}  # fmt: skip
"""Name, whose first word is the kind, and text."""
FAST = ("causal", "window", "alibi", "alibi from the end")


def weights(layers: int, size: int) -> dict[str, np.ndarray]:
    """What the texts name and do not define; projections are each layer's own, heads of `size`."""
    held = raw_decoder.weights()
    held |= {
        "q_heads": np.asarray([0, 0, HEADS, size]), "kv_heads": np.asarray([0, 0, KV, size]),
        "head_size": np.asarray([size]), "all_heads": np.asarray([0, HEADS, -1, size]),
        "row_3": np.asarray([size // 2]), "row_6": np.asarray([size]),
        "frequencies": (0.7 ** np.arange(size // 2)).astype(np.float32),
        "scale": np.float32(size**-0.5), "row_4": np.asarray([4]), "row_2": np.asarray([2]),
        "axes_13": np.asarray([1, 3]), "axes_12": np.asarray([1, 2]),
        "axes_123": np.asarray([1, 2, 3]),
        "w_q": np.zeros((HIDDEN, HEADS * size)), "w_k": np.zeros((HIDDEN, KV * size)),
        "w_v": np.zeros((HIDDEN, KV * size)), "w_o": np.zeros((HEADS * size, HIDDEN)),
    }  # fmt: skip
    held |= {f"n_{n}": np.int64(n) for n in (1, 2, 3, 4, 5, 7, 10, 24, 40)}
    held |= _buffers()
    rng = np.random.default_rng(5)
    held |= {
        "bias_table": rng.standard_normal((16, HEADS)).astype(np.float32),
        "exact": np.int64(8), "exact_f": np.float32(8), "last_bucket": np.int64(15),
        "per_log": np.float32(8 / np.log(16.0)), "clip_low": np.float32(-0.5),
        "clip_high": np.float32(0.5), "f_40": np.float32(40), "tenth": np.float32(0.1),
        "learned_long": rng.standard_normal((POSITIONS, HIDDEN)).astype(np.float32),
    }  # fmt: skip
    for layer in range(layers):
        for name in ("w_q", "w_k", "w_v", "w_o", "norm_scale"):
            shape = held[name].shape
            held[f"{name}_l{layer}"] = rng.standard_normal(shape).astype(np.float32) * 0.7
    return held


def _buffers() -> dict[str, np.ndarray]:
    """Tables that masks are cut from."""
    rng = np.random.default_rng(9)
    slopes = np.asarray([0.5, 0.3, 0.1, 0.7]).reshape(1, HEADS, 1, 1)
    from_end = np.arange(1 - POSITIONS, 1).reshape(1, 1, 1, -1)
    return {
        "causal_buffer": np.tril(np.ones((1, 1, 96, 96), np.bool_)),
        "alibi_buffer": (from_end * slopes).astype(np.float32),
        "pair_buffer": rng.standard_normal((1, HEADS, 96, 96)).astype(np.float32),
        "segments": np.sort(rng.integers(0, 9, 96)), "n_512": np.asarray([POSITIONS]),
        "n_39_back": np.int64(-39), "two_zeros": np.asarray([0, 0]), "axis_3": np.asarray([3]),
        "axes_23": np.asarray([2, 3]), "low_1e4": np.float32(-1e4), "low_1e9": np.float32(-1e9),
        "minus_infinity_l": np.float32(-np.inf),
        "head_windows": np.asarray([5, 40, 24, 7]).reshape(1, HEADS, 1, 1),
    }  # fmt: skip


def host(masks: list[str], size: int = SIZE, **pieces: str) -> ir.Model:
    """A raw decoder with one layer per mask (a name of MASKS or text), other pieces replaced."""
    ids = VOCABULARY
    text = [pieces.get("entry", PIECES["entry"]), pieces.get("angles", ANGLES)]
    for layer, mask in enumerate(masks):
        own = {**PIECES, **pieces, "mask": MASKS.get(mask, mask)}
        text.append(_layer("\n".join(own[p] for p in LAYER), layer))
    text.append(pieces.get("head", PIECES["head"]).replace("(y,", f"(x_l{len(masks)},"))
    body = re.sub(r"^( *)x = ", r"\1x_l0 = ", "\n".join(text), count=1, flags=re.M)
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> raw ({raw_decoder.INPUTS}) => '
        f"(float[B,N,{ids}] logits) {{{body}}}"
    )
    defined = {o for n in proto.graph.node for o in n.output} | {i.name for i in proto.graph.input}
    held = weights(len(masks), size)
    for name in sorted({i for n in proto.graph.node for i in n.input if i} - defined):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(held[name], name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    write_facts(model, DecoderFacts(ids, HIDDEN, len(masks), HEADS, KV, size, POSITIONS))
    return model


def _layer(text: str, layer: int) -> str:
    """The text of one layer: what it defines, and its weights, get its number."""
    own = set(re.findall(r"^\s*(\w+) = ", text, re.M)) | {"w_q", "w_k", "w_v", "w_o", "norm_scale"}
    named = re.sub(r"\b(\w+)\b", lambda m: f"{m[1]}_l{layer}" if m[1] in own else m[1], text)
    return re.sub(r"\bx\b", f"x_l{layer}", named).replace(f"y_l{layer}", f"x_l{layer + 1}")


def feed(length: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Random ids, positions from zero."""
    ids = np.random.default_rng(length).integers(0, VOCABULARY, (batch, length))
    return {"tokens": ids, "positions": np.tile(np.arange(length), (batch, 1))}


__all__ = ["FAST", "LONGEST", "MASKS", "SPELLINGS", "feed", "host", "weights"]
