"""Small ONNX files as users have them: other names, types and operators than our own exports.

Each is a text for `raw_decoder`, with what ONNX Runtime's optimizer, the GenAI builder, optimum or
a hand-written export put in its place.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from .raw_decoder import (
    ANGLES, ATTEND, HEAD, HEADS, HEADS_OF, KV, LONGEST, MASK, REPEAT, SIZE, decoder, turn, weights,
)  # fmt: skip

MS = "com.microsoft"
GENAI_NORM = "n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.00001, stash_type = 1>(x, norm_scale)"
LENGTHS = """
    kept = ReduceSum<keepdims = 1>(attention_mask, one_row)
    last_at = Sub(kept, row_1)
    seqlens = Cast<to = 6>(last_at)
    mask_shape = Shape(attention_mask)
    all = Gather(mask_shape, one_step)
    total = Cast<to = 6>(all)
"""
FLAT_HEADS = "qf = MatMul(n, w_q)\nkf = MatMul(n, w_k)\nvf = MatMul(n, w_v)"
OUT = "o = MatMul(flat, w_o)\ny = Add(x, o)"
CACHES = "float[B,2,P,6] past_a, float[B,2,P,6] past_b"


def group_query(options: str = "", packed: bool = False, rotary: bool = True) -> dict[str, str]:
    """The pieces of a graph by the GenAI builder."""
    tables = "cos_cache, sin_cache" if rotary else ""
    operands = "packed, , " if packed else "qf, kf, vf"
    extra = ", do_rotary = 1" if rotary else ""
    attend = (
        f"flat, pa, pb = com.microsoft.GroupQueryAttention<num_heads = {HEADS}, "
        f"kv_num_heads = {KV}{extra}{options}>"
        f"({operands}, past_a, past_b, seqlens, total{', ' + tables if rotary else ''})\n{OUT}"
    )
    joined = "w_all = Concat<axis = 1>(w_q, w_k, w_v)\npacked = MatMul(n, w_all)"
    return {
        "inputs": f"int64[B,N] ids, int64[B,T] attention_mask, {CACHES}",
        "entry": "x = Gather(embed, ids)", "norm": GENAI_NORM,
        "heads": joined if packed else FLAT_HEADS, "angles": LENGTHS, "rotary": "", "repeat": "",
        "mask": "", "attend": attend,
        "outputs": "float[B,N,11] scores, float[B,2,T,6] pa, float[B,2,T,6] pb",
        "head": HEAD.replace("logits", "scores"),
    }  # fmt: skip
