"""Small ONNX files as users have them: other names, types and operators than our own exports.

Each is a set of pieces for `raw_decoder.decoder`: what ONNX Runtime's optimizer, the GenAI builder,
optimum or a hand-written export puts in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tests.passes.canonical.raw_decoder import (
    ATTEND,
    HEAD,
    HEADS,
    HEADS_OF,
    KV,
    MASK,
    PIECES,
    decoder,
)

Pieces = dict[str, str]
RUNTIME_NORM = """
    n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.00001, stash_type = 1>(x, norm_scale)
"""
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
CACHES = "float[B,2,P,16] past_a, float[B,2,P,16] past_b"
PRESENT = "float[B,2,T,16] pa, float[B,2,T,16] pb"
SCORES = "float[B,N,11] answer"
MASK_4D = "bias = Identity(my_mask)"
PAST = HEADS_OF.replace("k = Transpose", "k_new = Transpose").replace("v = T", "v_new = T")
JOINED = """
    kj = Concat<axis = 2>(past_a, kr)
    vj = Concat<axis = 2>(past_b, v)
    kt = Transpose<perm = [0, 1, 3, 2]>(kj)
"""


def group_query(
    options: str = "", packed: bool = False, rotary: bool = True, direct: bool = False
) -> Pieces:
    """A graph by the GenAI builder; `direct`: lengths are inputs, not counted from a mask."""
    inputs = "int32[B] seqlens, int32 total" if direct else "int64[B,T] attention_mask"
    operands = "packed, , " if packed else "qf, kf, vf"
    attributes = f"num_heads = {HEADS}, kv_num_heads = {KV}, do_rotary = {int(rotary)}{options}"
    tables = ", cos_cache, sin_cache" if rotary else ""
    attend = (
        f"flat, pa, pb = com.microsoft.GroupQueryAttention<{attributes}>"
        f"({operands}, past_a, past_b, seqlens, total{tables})\n{OUT}"
    )
    one_matrix = "w_all = Concat<axis = 1>(w_q, w_k, w_v)\npacked = MatMul(n, w_all)"
    return {
        "inputs": f"int64[B,N] ids, {inputs}, {CACHES}", "outputs": f"{SCORES}, {PRESENT}",
        "entry": "x = Gather(embed, ids)", "norm": RUNTIME_NORM,
        "heads": one_matrix if packed else FLAT_HEADS, "angles": "" if direct else LENGTHS,
        "rotary": "", "repeat": "", "mask": "", "attend": attend,
        "head": HEAD.replace("logits", "answer"),
    }  # fmt: skip


def multi_head() -> Pieces:
    """ONNX Runtime's MultiHeadAttention behind its RotaryEmbedding, without a cache."""
    wide = "w_kk = Concat<axis = 1>(w_k, w_k)\nw_vv = Concat<axis = 1>(w_v, w_v)"
    turned = "".join(
        f"{x}t = com.microsoft.RotaryEmbedding({x}f, places, cos_cache, sin_cache)\n" for x in "qk"
    )
    attend = (
        f"flat = com.microsoft.MultiHeadAttention<num_heads = {HEADS}, unidirectional = 1>"
        f"(qt, kt, vf)\n{OUT}"
    )
    return {
        "inputs": "int64[B,N] ids, int64[B,N] places", "entry": "x = Gather(embed, ids)",
        "heads": f"{wide}\nqf = MatMul(n, w_q)\nkf = MatMul(n, w_kk)\nvf = MatMul(n, w_vv)",
        "angles": turned, "rotary": "", "repeat": "", "mask": "", "attend": attend,
    }  # fmt: skip


def packed_weights() -> Pieces:
    """ONNX Runtime's Attention over one matrix, its rows padded by a mask of lengths; no rotary."""
    matrix = "w_all = Concat<axis = 1>(w_q, w_q, w_q)"
    attend = (
        f"flat = com.microsoft.Attention<num_heads = {HEADS}, unidirectional = 1>"
        f"(n, w_all, b_all, pads)\n{OUT}"
    )
    return {
        "inputs": "int32[B,N] ids, int32[B,T] pads", "entry": "x = Gather(embed, ids)",
        "heads": f"{matrix}\nb_all = Concat<axis = 0>(b_q, b_q, b_q)", "angles": "", "rotary": "",
        "repeat": "", "mask": "", "attend": attend,
    }  # fmt: skip


def cached(mask: str = "float[B,1,N,T] my_mask") -> Pieces:
    """A hand-written export with a cache and a mask over pairs, under names of its own."""
    return {
        "inputs": f"int32[B,N] ids, int32[B,N] places, {mask}, float[B,2,P,6] a, float[B,2,P,6] b",
        "outputs": "float[B,2,T,6] kc, float[B,2,T,6] vc, float[B,N,11] answer",
        "entry": "x = Gather(embed, ids)",
        "angles": PIECES["angles"].replace("positions", "places"),
        "repeat": (
            "kc = Concat<axis = 2>(a, kr)\nvc = Concat<axis = 2>(b, v)\n"
            "batch = Shape<start = 0, end = 1>(kc)\nlength = Shape<start = 2, end = 3>(kc)"
            + "".join(
                f"\nwide{x} = Concat<axis = 0>(batch, kv_count, groups, length, head_size)\n"
                f"{x}5 = Unsqueeze({x}c, axis_2)\n{x}6 = Expand({x}5, wide{x})\n"
                f"{x}{x} = Reshape({x}6, all_heads)"
                for x in "kv"
            )
        ),
        "mask": MASK_4D, "head": HEAD.replace("logits", "answer"),
    }  # fmt: skip


def last_rows(kept: str = "int64[1] keep") -> Pieces:
    """`num_logits_to_keep`: the head sees the last rows alone."""
    head = "from = Neg(keep)\nz = Slice(y, from, far, row_1)\n" + HEAD.replace("(y,", "(z,")
    return {"inputs": f"int64[B,N] tokens, int64[B,N] positions, {kept}", "head": head}


def half(model: ir.Model) -> ir.Model:
    """The same graph in float16."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            low = np.maximum(array, -65504).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(low, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
            if node.op_type == "ConstantOfShape":
                array = onnx.numpy_helper.to_array(attribute.t)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16)))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del proto.graph.value_info[:]
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def merged() -> ir.Model:
    """optimum's merged decoder: an `If` over a graph with a cache and one without."""
    pieces = cached("int64[B,T] pads")
    pieces |= {"mask": MASK.replace("(length, length)", "(rows_of, length)")}
    outer = decoder(**_own_mask(pieces))
    proto = ir.to_proto(outer)
    branches = {True: _branch(proto, {}), False: _branch(proto, {"a": "none_a", "b": "none_b"})}
    graph = proto.graph
    start = ("some", "empty", "none_a", "none_b")
    kept = [n for n in graph.node if n.output[0] in start]
    del graph.node[:]
    graph.node.extend(kept)
    node = onnx.helper.make_node("If", ["use_past"], [o.name for o in graph.output], name="merged")
    node.attribute.append(onnx.helper.make_attribute("then_branch", branches[True]))
    node.attribute.append(onnx.helper.make_attribute("else_branch", branches[False]))
    graph.node.append(node)
    flag = onnx.helper.make_tensor_value_info("use_past", onnx.TensorProto.BOOL, [1])
    graph.input.append(flag)
    del graph.value_info[:]
    return ir.from_proto(proto)


def _own_mask(pieces: Pieces) -> Pieces:
    """The causal mask of N rows over all slots, made in the graph; and empty caches for a start."""
    mask = """
    rows_of = Shape<start = 1, end = 2>(ids)
    square_of = Concat<axis = 0>(length, length)
    ones = ConstantOfShape<value = float[1] {1.0}>(square_of)
    lower = Trilu<upper = 0>(ones)
    behind = Sub(length, rows_of)
    rows_seen = Slice(lower, behind, length, axis_0)
    see = Cast<to = 9>(rows_seen)
    bias = Where(see, nothing, lowest)
    some = Shape<start = 0, end = 1>(ids)
    empty = Concat<axis = 0>(some, kv_count, row_0, head_size)
    none_a = ConstantOfShape<value = float[1] {0.0}>(empty)
    none_b = Identity(none_a)
    """
    inputs = pieces["inputs"].replace("int64[B,T] pads, ", "")
    return {**pieces, "mask": mask, "inputs": inputs}


def _branch(proto: onnx.ModelProto, renamed: dict[str, str]) -> onnx.GraphProto:
    """The graph as a branch, some of its outer values under other names."""
    graph = onnx.GraphProto()
    graph.name = f"branch{len(renamed)}"
    outside = ("some", "empty", "none_a", "none_b")
    for node in (n for n in proto.graph.node if n.output[0] not in outside):
        copy = graph.node.add()
        copy.CopyFrom(node)
        for at, name in enumerate(copy.input):
            copy.input[at] = renamed.get(name, name)
    graph.output.extend(proto.graph.output)
    return graph


FILES: dict[str, Callable[[], ir.Model]] = {
    "group query": lambda: decoder(size=16, **group_query()),
    "group query, packed": lambda: decoder(size=16, **group_query(packed=True)),
    "group query, window, cap, scale": lambda: decoder(size=16, **group_query(
        ", local_window_size = 4, softcap = 2.0, scale = 0.3")),
    "group query, interleaved": lambda: decoder(size=16, **group_query(", rotary_interleaved = 1")),
    "group query, lengths as inputs": lambda: decoder(size=16, **group_query(direct=True)),
    "multi head": lambda: decoder(**multi_head()),
    "packed weights": lambda: decoder(**packed_weights()),
    "other names and 32-bit ids": lambda: decoder(**cached()),
    "half precision": lambda: half(decoder()),
    "half precision with a past": lambda: half(decoder(**cached())),
    "last rows": lambda: decoder(**last_rows()),
    "merged": merged,
}  # fmt: skip
__all__ = ["ATTEND", "FILES", "Any", "cached", "decoder", "group_query", "half", "last_rows"]
