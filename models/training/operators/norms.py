"""Normalizations, softmax and reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from graftline.models.training.operators.operator import (
    Operator,
    Values,
    given,
    needed,
    whole_numbers,
)


def _epsilon(node: ir.Node) -> float:
    return node.attributes.get_float("epsilon", 1e-5)


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", -1)


def _layer_norm(node: ir.Node, values: Values) -> torch.Tensor:
    """Only its first output: means and deviations are for training on."""
    x = needed(values)
    sizes = x.shape[_axis(node) % x.ndim :]
    scale, bias = (None if v is None else v.expand(sizes) for v in (values[1], given(values, 2)))
    return functional.layer_norm(x, sizes, scale, bias, _epsilon(node))


def _rms_norm(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    sizes = x.shape[_axis(node) % x.ndim :]
    return functional.rms_norm(x, sizes, needed(values, 1).expand(sizes), _epsilon(node))


def _group_norm(node: ir.Node, values: Values) -> torch.Tensor:
    groups = node.attributes["num_groups"].as_int()
    return functional.group_norm(needed(values), groups, values[1], values[2], _epsilon(node))


def _instance_norm(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    return functional.group_norm(x, x.shape[1], values[1], values[2], _epsilon(node))


def _batch_norm(node: ir.Node, values: Values) -> torch.Tensor:
    """With the means and variances of the file, as it is run."""
    x, scale, bias, mean, variance = (needed(values, place) for place in range(5))
    factor = scale * (variance + _epsilon(node)).rsqrt()
    places = [1, -1, *[1] * (x.ndim - 2)]
    return x * factor.reshape(places) + (bias - mean * factor).reshape(places)


def _softmax(node: ir.Node, values: Values) -> torch.Tensor:
    run = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    return run(needed(values), _axis(node))


def _reduced(function: Callable[..., Any]) -> Operator:
    def run(node: ir.Node, values: Values) -> torch.Tensor:
        x, axes = needed(values), given(values, 1)
        along = [] if axes is None else whole_numbers(axes)
        if not along and node.attributes.get_int("noop_with_empty_axes", 0):
            return x
        kept = bool(node.attributes.get_int("keepdims", 1))
        return function(x, tuple(along or range(x.ndim)), keepdim=kept)

    return run


def _l2(x: torch.Tensor, axes: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.square().sum(axes, keepdim=keepdim).sqrt()


NORMS: Mapping[str, Operator] = {
    "BatchNormalization": _batch_norm, "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm, "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax, "RMSNormalization": _rms_norm, "ReduceL2": _reduced(_l2),
    "ReduceMax": _reduced(torch.amax), "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin), "ReduceSum": _reduced(torch.sum), "Softmax": _softmax,
}  # fmt: skip
