"""Products with weights, convolutions, pools and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from graftline.models.training.operators.operator import (
    Operator,
    Values,
    given,
    needed,
    refused,
    simple,
)


def _gemm(node: ir.Node, values: Values) -> torch.Tensor:
    a, b, c = needed(values), needed(values, 1), given(values, 2)
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    made = a @ b * node.attributes.get_float("alpha", 1.0)
    return made if c is None else made + c * node.attributes.get_float("beta", 1.0)


def _einsum(node: ir.Node, values: Values) -> torch.Tensor:
    form = node.attributes["equation"].as_string()
    return torch.einsum(form, [v for v in values if v is not None])


def _axes_of(node: ir.Node, name: str, axes: int, usual: int = 1) -> list[int]:
    """An attribute that has a number for each axis."""
    return list(node.attributes.get_ints(name, None) or [usual] * axes)


def _pads(node: ir.Node, axes: int) -> tuple[list[int], list[int]]:
    """In front of and behind each axis. Raises NotApplicable where they depend on the size."""
    if (how := node.attributes.get_string("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        raise refused(node, f"has auto_pad {how}")
    both = _axes_of(node, "pads", 2 * axes, 0)
    return both[:axes], both[axes:]


def _padded(x: torch.Tensor, pads: tuple[Sequence[int], Sequence[int]], value: float) -> Any:
    """The input padded where one side has more than the other, and the pads that are left."""
    front, behind = pads
    if front == behind:
        return x, list(front)
    flat = [n for pair in zip(reversed(front), reversed(behind), strict=True) for n in pair]
    return functional.pad(x, flat, value=value), [0] * len(front)


def _conv(node: ir.Node, values: Values) -> torch.Tensor:
    x, weight = needed(values), needed(values, 1)
    axes = weight.ndim - 2
    if not 1 <= axes <= 3:
        raise refused(node, f"has {axes} axes")
    x, pads = _padded(x, _pads(node, axes), 0.0)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    return run(
        x, weight, given(values, 2), stride=_axes_of(node, "strides", axes), padding=pads,
        dilation=_axes_of(node, "dilations", axes), groups=node.attributes.get_int("group", 1),
    )  # fmt: skip


def _conv_transpose(node: ir.Node, values: Values) -> torch.Tensor:
    x, weight = needed(values), needed(values, 1)
    axes = weight.ndim - 2
    front, behind = _pads(node, axes)
    if node.attributes.get_ints("output_shape", None):
        raise refused(node, "has an output_shape")
    if not 1 <= axes <= 3 or front != behind:
        raise refused(node, f"has {axes} axes and the pads {front} and {behind}")
    run = (
        functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
    )[axes - 1]  # fmt: skip
    return run(
        x, weight, given(values, 2), stride=_axes_of(node, "strides", axes), padding=front,
        output_padding=_axes_of(node, "output_padding", axes, 0),
        groups=node.attributes.get_int("group", 1),
        dilation=_axes_of(node, "dilations", axes),
    )  # fmt: skip


def _pool(node: ir.Node, values: Values) -> torch.Tensor:
    x, size = needed(values), node.attributes["kernel_shape"].as_ints()
    axes = len(size)
    pads, steps = _pads(node, axes), _axes_of(node, "strides", axes)
    odd = set(_axes_of(node, "dilations", axes)) != {1} or node.attributes.get_int("ceil_mode", 0)
    if axes != 2 or odd or len([v for v in node.outputs if v.uses()]) > 1:
        raise refused(node, "has not two axes, or has dilations, ceil_mode or indices")
    if node.op_type == "MaxPool":
        x, left = _padded(x, pads, float("-inf"))
        return functional.max_pool2d(x, list(size), steps, left)
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    if pads[0] != pads[1]:
        raise refused(node, f"has the pads {pads[0]} and {pads[1]}")
    return functional.avg_pool2d(x, list(size), steps, pads[0], count_include_pad=counted)


def _global_pool(x: torch.Tensor) -> torch.Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def _attention(node: ir.Node, values: Values) -> torch.Tensor:
    """Of queries that have no past before them, in its standard form."""
    q, k, v = (needed(values, place) for place in range(3))
    mask, causal = given(values, 3), bool(node.attributes.get_int("is_causal", 0))
    more = any(given(values, place) is not None for place in (4, 5, 6)) or len(node.outputs) > 1
    if more or node.attributes.get_float("softcap", 0.0) or (causal and mask is not None):
        raise refused(node, "has a past, a soft cap, a causal mask beside another or more outputs")
    flat = q.ndim == 3
    if flat:
        heads = [node.attributes[f"{name}_num_heads"].as_int() for name in ("q", "kv", "kv")]
        pairs = zip((q, k, v), heads, strict=True)
        q, k, v = (x.unflatten(2, (count, -1)).transpose(1, 2) for x, count in pairs)
    made = functional.scaled_dot_product_attention(
        q,
        k,
        v,
        mask,
        is_causal=causal,
        scale=node.attributes.get_float("scale", None),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return made.transpose(1, 2).flatten(2) if flat else made


PRODUCTS: Mapping[str, Operator] = {
    "Attention": _attention, "AveragePool": _pool, "Conv": _conv,
    "ConvTranspose": _conv_transpose, "Einsum": _einsum, "Gemm": _gemm,
    "GlobalAveragePool": simple(_global_pool), "MatMul": simple(torch.matmul), "MaxPool": _pool,
}  # fmt: skip
