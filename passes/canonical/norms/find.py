"""Normalisations written in elementary nodes, found.

Anchored on the mean: x / sqrt(mean(x^2) + eps) is RMSNormalization, the same of x - mean(x) is
LayerNormalization. Casts around them belong to the node's own stash type.

onnxscript's fusion rules find 37 of the 242 norms of 35 generated hosts, and all of 5 hosts: they
know one spelling (Pow, Reciprocal, axes [-1]), no scale behind a cast and none stored as 1 + w.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.graph.meaning import constant, scalar, sizes_of
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.neighbours import constant_operand, producer, reader, single


@dataclass
class Norm:
    """A matched normalisation of `x` over its last axis, up to `out`."""

    x: ir.Value
    out: ir.Value
    epsilon: float
    centred: bool
    scale: ir.Value | None = None
    plus_one: ir.Value | None = None
    """A scale stored as its difference from one."""
    bias: ir.Value | None = None


def find_norm(mean: ir.Node) -> Norm | Mismatch:
    """The normalisation whose mean of squares, or sum of squares, is this node."""
    if mean.op_type not in ("ReduceMean", "ReduceSumSquare"):
        return Mismatch.at(mean, "makes no mean of squares")
    if not _over_last(mean):
        return Mismatch.at(mean, "averages over other axes than the last alone, kept as one")
    found = _mean_of_squares(mean)
    if isinstance(found, Mismatch):
        return found
    x, squares, count = found
    add = reader(squares, "Add")
    if add is None or (epsilon := constant_operand(add, squares)) is None:
        return Mismatch.at(add or mean, "no constant epsilon is added to the mean of squares")
    root = reader(add.outputs[0], "Sqrt", "Rsqrt", "Pow")
    out = None if root is None else _divided(x, root)
    if out is None:
        return Mismatch.at(root or add, f"{x.name} is not divided by the root of its mean square")
    source, centred = centred_source(x)
    norm = Norm(before_cast(source), out, epsilon, centred)
    _take_affine(norm)
    if count is not None and count != (width := _width(norm)):
        return Mismatch.at(mean, f"the sum of squares of {width} numbers is divided by {count:g}")
    return norm


def _mean_of_squares(node: ir.Node) -> tuple[ir.Value, ir.Value, float | None] | Mismatch:
    """x, the mean of its squares, and the number that their sum is divided by, where it is."""
    if node.op_type == "ReduceMean":
        x = _squared(producer(node.inputs[0]))
        if x is None:
            return Mismatch.at(node, "averages what is no square")
        return x, node.outputs[0], None
    x, divided = node.inputs[0], single(node.outputs[0], "Div")
    count = scalar(divided.inputs[1]) if divided is not None else None
    if x is None or divided is None or count is None or divided.inputs[0] is not node.outputs[0]:
        return Mismatch.at(node, "its sum of squares is not divided by how many there are")
    return x, divided.outputs[0], count


def _width(norm: Norm) -> int | None:
    """The size of the last axis, by the scale or by the shape of x."""
    vector = norm.scale or norm.plus_one
    if vector is not None and vector.const_value is not None:
        return sizes_of(vector.const_value)[0]
    width = norm.x.shape[-1] if norm.x.shape is not None and len(norm.x.shape) else None
    return width if isinstance(width, int) else None


def _over_last(node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes is None or axes.size != 1 or not node.attributes.get_int("keepdims", 1):
        return False
    axis = int(axes.reshape(()))
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _squared(node: ir.Node | None) -> ir.Value | None:
    if node is None:
        return None
    if node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _divided(x: ir.Value, root: ir.Node) -> ir.Value | None:
    """x / root, written as Div, or as Mul by a reciprocal."""
    value = root.outputs[0]
    if root.op_type == "Pow":
        power = scalar(root.inputs[1])
        if power == -0.5:
            return _product(x, value)
        if power != 0.5:
            return None
    if root.op_type == "Rsqrt":
        return _product(x, value)
    for node, index in value.uses():
        if node.op_type == "Div" and index == 1 and node.inputs[0] is x:
            return node.outputs[0]
        if node.op_type == "Div" and index == 1 and scalar(node.inputs[0]) == 1.0:
            return _product(x, node.outputs[0])
        if node.op_type == "Reciprocal":
            return _product(x, node.outputs[0])
    return None


def _product(x: ir.Value, factor: ir.Value) -> ir.Value | None:
    for node, _ in factor.uses():
        if node.op_type == "Mul" and x in node.inputs:
            return node.outputs[0]
    return None


def centred_source(x: ir.Value) -> tuple[ir.Value, bool]:
    """What a value is without its mean, and whether it is."""
    node = x.producer()
    if node is None or node.op_type != "Sub":
        return x, False
    mean = producer(node.inputs[1])
    source = node.inputs[0]
    if source is None or mean is None or mean.op_type != "ReduceMean":
        return x, False
    return (source, True) if mean.inputs[0] is source and _over_last(mean) else (x, False)


def before_cast(value: ir.Value) -> ir.Value:
    """A float value as it was before it was cast for the norm."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    if source is None or source.dtype is None or not source.dtype.is_floating_point():
        return value
    return source


def _take_affine(norm: Norm) -> None:
    """Extend the match over a cast, a scale vector (perhaps 1 + w) and a bias."""
    out = norm.out
    cast = single(out, "Cast")
    if cast is not None and cast.outputs[0].dtype == norm.x.dtype:
        out = cast.outputs[0]
    mul = single(out, "Mul")
    if mul is None:
        norm.out = out
        return
    other = mul.inputs[1] if mul.inputs[0] is out else mul.inputs[0]
    scale, plus_one = _vector(other), _one_plus(other)
    if scale is None and plus_one is None:
        norm.out = out
        return
    norm.scale, norm.plus_one, norm.out = scale, plus_one, mul.outputs[0]
    cast = single(norm.out, "Cast")
    if cast is not None and cast.outputs[0].dtype == norm.x.dtype:
        norm.out = cast.outputs[0]
    add = single(norm.out, "Add") if norm.centred else None
    if add is not None:
        bias = _vector(add.inputs[1] if add.inputs[0] is norm.out else add.inputs[0])
        if bias is not None:
            norm.bias, norm.out = bias, add.outputs[0]


def _vector(value: ir.Value | None) -> ir.Value | None:
    """A float vector from the checkpoint, seen through a cast."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        value = node.inputs[0]
    if value is None or value.const_value is None or len(value.const_value.shape) != 1:
        return None
    return value


def _one_plus(value: ir.Value | None) -> ir.Value | None:
    node = producer(value)
    if node is not None and node.op_type == "Cast":
        node = producer(node.inputs[0])
    if node is None or node.op_type != "Add":
        return None
    for one, vector in ((0, 1), (1, 0)):
        if scalar(node.inputs[one]) == 1.0:
            return _vector(node.inputs[vector])
    return None
