"""What TensorRT's ONNX importer cannot take, told from the graph before any library is used."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graftline.plugins.spec import DOMAIN

_OPERATORS = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool
    Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization IsInf IsNaN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish
    Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow RMSNormalization RNN Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RotaryEmbedding Round
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
IMPORTED = frozenset(_OPERATORS.split())
"""Operators of the standard domain the importer takes (a test asks the library for each)."""
QUANTIZED = ("MatMulNBits", "DynamicQuantizeMatMul", "DynamicQuantizeLinear", "MatMulInteger")


def key_and_value_size(node: ir.Node) -> tuple[int | None, int | None]:
    """Numbers in a key and in a value of an Attention node, where they are known."""
    sizes: list[int | None] = []
    for value in node.inputs[1:3]:
        last = value.shape[-1] if value is not None and value.shape is not None else None
        sizes.append(last if isinstance(last, int) else None)
    return sizes[0], sizes[1]


def refusals(graph: ir.Graph) -> dict[str, list[str]]:
    """Reason -> names of the nodes it holds for; empty when everything can be lowered."""
    found: dict[str, list[str]] = {}
    for node in graph:
        if reason := _refusal(node):
            found.setdefault(reason, []).append(node.name or node.op_type)
    return found


def _refusal(node: ir.Node) -> str:
    if node.op_type in QUANTIZED:
        return f"{node.op_type} is ONNX Runtime's: TensorRT targets take --dtype fp32, fp16 or bf16"
    if node.domain == DOMAIN:
        return ""  # a plugin, or a function that is inlined
    if node.domain:
        return f"{node.domain}::{node.op_type} is not an operator that TensorRT knows"
    if any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return f"{node.op_type}: control flow is not lowered yet"
    if node.op_type not in IMPORTED:
        return f"TensorRT's importer has no {node.op_type}"
    if node.op_type == "Attention":
        return _attention_refusal(node)
    if node.op_type == "TensorScatter" and _text(node, "mode", "linear") != "linear":
        return "TensorScatter: TensorRT writes caches linearly, not in a circle"
    return ""


def _attention_refusal(node: ir.Node) -> str:
    used = [v for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
    if used or any(v is not None for v in node.inputs[4:]):
        return "Attention with past, present or lengths: TensorRT takes one output; run kv-cache"
    query = node.inputs[0]
    if query is None or query.shape is None or len(query.shape) != 4:
        return "Attention over rows that are not [B, heads, N, D]"
    keys, values = key_and_value_size(node)
    odd = node.attributes.get_float("softcap", 0.0) or keys != values
    if odd and node.attributes.get_int("is_causal", 0):
        return "Attention with a soft cap and no mask: put kv-cache before lower-tensorrt"
    if odd and (keys is None or values is None or not _static(node.inputs[:2])):
        return "Attention with a soft cap needs known heads and head sizes"
    return ""


def _static(values: Iterable[ir.Value | None]) -> bool:
    """Whether the number of heads of every [B, heads, ., .] is known."""
    shapes = [v.shape if v is not None else None for v in values]
    return all(shape is not None and isinstance(shape[1], int) for shape in shapes)


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default
