"""A one-block decoder as ONNX text, in the spellings exporters use; each test swaps one piece."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from graftline.models.decoder import TinyDecoder

HIDDEN, HEADS, KV, SIZE, VOCABULARY, LONGEST = 8, 4, 2, 6, 11, 32
SHAPE = TinyDecoder(1, HIDDEN, HEADS, KV, SIZE, 0, VOCABULARY, LONGEST)

ENTRY = "x = Gather(embed, tokens)"
NORM = """
    square = Pow(x, two)
    mean = ReduceMean(square, last)
    safe = Add(mean, epsilon)
    root = Sqrt(safe)
    over = Reciprocal(root)
    unit = Mul(x, over)
    n = Mul(norm_scale, unit)
"""
HEADS_OF = """
    q0 = MatMul(n, w_q)
    q1 = Reshape(q0, q_heads)
    q = Transpose<perm = [0, 2, 1, 3]>(q1)
    k0 = MatMul(n, w_k)
    k1 = Reshape(k0, kv_heads)
    k = Transpose<perm = [0, 2, 1, 3]>(k1)
    v0 = MatMul(n, w_v)
    v1 = Reshape(v0, kv_heads)
    v = Transpose<perm = [0, 2, 1, 3]>(v1)
"""
ANGLES = """
    at0 = Unsqueeze(positions, last)
    at = Cast<to = 1>(at0)
    angle = Mul(at, frequencies)
    angles = Concat<axis = -1>(angle, angle)
    cos0 = Cos(angles)
    sin0 = Sin(angles)
    cos = Unsqueeze(cos0, one_row)
    sin = Unsqueeze(sin0, one_row)
"""


def turn(x: str) -> str:
    """rotate_half, decomposed: `x`r from `x`."""
    return f"""
    {x}_a = Slice({x}, row_0, row_3, last)
    {x}_b = Slice({x}, row_3, row_6, last)
    {x}_n = Neg({x}_b)
    {x}_h = Concat<axis = -1>({x}_n, {x}_a)
    {x}_c = Mul({x}, cos)
    {x}_s = Mul({x}_h, sin)
    {x}r = Add({x}_c, {x}_s)
"""


REPEAT = """
    batch = Shape<start = 0, end = 1>(tokens)
    length = Shape<start = 1, end = 2>(tokens)
    wide = Concat<axis = 0>(batch, kv_count, groups, length, head_size)
    k5 = Unsqueeze(kr, axis_2)
    k6 = Expand(k5, wide)
    kk = Reshape(k6, all_heads)
    v5 = Unsqueeze(v, axis_2)
    v6 = Expand(v5, wide)
    vv = Reshape(v6, all_heads)
"""
MASK = """
    square_of = Concat<axis = 0>(length, length)
    ones = ConstantOfShape<value = float[1] {1.0}>(square_of)
    lower = Trilu<upper = 0>(ones)
    see = Cast<to = 9>(lower)
    bias = Where(see, nothing, lowest)
"""
ATTEND = """
    kt = Transpose<perm = [0, 1, 3, 2]>(kk)
    scores = MatMul(qr, kt)
    scaled = Mul(scores, scale)
    biased = Add(scaled, bias)
    weights = Softmax<axis = -1>(biased)
    heads = MatMul(weights, vv)
    rows = Transpose<perm = [0, 2, 1, 3]>(heads)
    flat = Reshape(rows, joined)
    o = MatMul(flat, w_o)
    y = Add(x, o)
"""
HEAD = """
    head = Transpose<perm = [1, 0]>(embed)
    logits = MatMul(y, head)
"""
PIECES = {
    "entry": ENTRY, "norm": NORM, "heads": HEADS_OF, "angles": ANGLES,
    "rotary": turn("q") + turn("k"), "repeat": REPEAT, "mask": MASK, "attend": ATTEND, "head": HEAD,
}  # fmt: skip
INPUTS = "int64[B,N] tokens, int64[B,N] positions"


def weights(size: int = SIZE, seed: int = 0) -> dict[str, np.ndarray]:
    """Everything the text names and does not define, for heads of `size`."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def ints(*values: int) -> np.ndarray:
        return np.asarray(values, np.int64)

    angles = np.arange(LONGEST)[:, None] * 0.3 ** np.arange(size // 2)
    return {
        "embed": normal(VOCABULARY, HIDDEN), "norm_scale": normal(HIDDEN),
        "w_q": normal(HIDDEN, HEADS * size), "w_k": normal(HIDDEN, KV * size),
        "w_v": normal(HIDDEN, KV * size), "w_o": normal(HEADS * size, HIDDEN),
        "learned": normal(LONGEST + 2, HIDDEN), "norm_bias": normal(HIDDEN),
        "frequencies": np.asarray([1.0, 0.3, 0.05], np.float32),
        "cos_cache": np.cos(angles).astype(np.float32),
        "sin_cache": np.sin(angles).astype(np.float32),
        "slopes": np.asarray([0.5, 0.25, 0.125, 0.0625], np.float32).reshape(1, 4, 1, 1),
        "epsilon": np.float32(1e-5), "two": np.float32(2), "one": np.float32(1),
        "scale": np.float32(size**-0.5), "cap": np.float32(2.0),
        "nothing": np.float32(0), "lowest": np.float32(-3e38),
        "last": ints(-1), "one_row": ints(1), "axis_2": ints(2), "axis_0": ints(0),
        "row_0": ints(0), "row_1": ints(1), "row_3": ints(3), "row_6": ints(6),
        "axes_pair": ints(1, 3), "axes_mid": ints(1, 2), "last_one": np.int64(-1),
        "w_two": normal(HIDDEN, 2), "types": normal(2, HIDDEN), "far": ints(1 << 40),
        "b_q": normal(HEADS * size),
        "zero": np.int64(0), "one_step": np.int64(1), "window": np.int64(4), "offset": np.int64(2),
        "q_heads": ints(0, 0, HEADS, size), "kv_heads": ints(0, 0, KV, size),
        "kv_count": ints(KV), "groups": ints(HEADS // KV), "head_size": ints(size),
        "all_heads": ints(0, HEADS, -1, size), "joined": ints(0, 0, -1),
    }  # fmt: skip


def decoder(
    inputs: str = INPUTS, outputs: str = "float[B,N,11] logits", opset: int = 23, size: int = SIZE,
    **pieces: str,
) -> ir.Model:
    """The raw decoder with some pieces replaced. Raises KeyError for an unknown piece."""
    for name in pieces:
        PIECES[name]
    body = "\n".join({**PIECES, **pieces}.values())
    domains = f'["" : {opset}, "com.microsoft" : 1]'
    text = f"<ir_version: 10, opset_import: {domains}> raw ({inputs}) => ({outputs}) {{{body}}}"
    proto = onnx.parser.parse_model(text)
    defined = {o for n in proto.graph.node for o in n.output} | {i.name for i in proto.graph.input}
    held = weights() if size == SIZE else weights(size)
    for name in sorted({i for n in proto.graph.node for i in n.input if i} - defined):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(held[name], name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def feed(length: int = 7, batch: int = 2) -> dict[str, np.ndarray]:
    """Tokens and positions counting from zero."""
    rng = np.random.default_rng(3)
    return {
        "tokens": rng.integers(0, VOCABULARY, (batch, length)),
        "positions": np.broadcast_to(np.arange(length), (batch, length)).copy(),
    }
