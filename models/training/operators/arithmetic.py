"""Operators that compute each number by itself, and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

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

_DTYPES: Mapping[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32, ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT64: torch.int64, ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}  # fmt: skip


def torch_dtype(kind: ir.DataType) -> torch.dtype | None:
    """The torch type of an ONNX one; None for one that nothing is trained in."""
    return _DTYPES.get(kind)


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whole numbers are divided towards zero."""
    whole = not a.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _mod(node: ir.Node, values: Values) -> torch.Tensor:
    rest = torch.fmod if node.attributes.get_int("fmod", 0) else torch.remainder
    return rest(needed(values), needed(values, 1))


def _power(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.pow(a, b).to(a.dtype)


def _clip(node: ir.Node, values: Values) -> torch.Tensor:
    return torch.clamp(needed(values), given(values, 1), given(values, 2))


def _gelu(node: ir.Node, values: Values) -> torch.Tensor:
    kind = node.attributes.get_string("approximate", "none") or "none"
    return functional.gelu(needed(values), approximate=kind)


def _leaky_relu(node: ir.Node, values: Values) -> torch.Tensor:
    return functional.leaky_relu(needed(values), _alpha(node, 0.01))


def _elu(node: ir.Node, values: Values) -> torch.Tensor:
    return functional.elu(needed(values), _alpha(node, 1.0))


def _swish(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    return x * torch.sigmoid(_alpha(node, 1.0) * x)


def _alpha(node: ir.Node, usual: float) -> float:
    return node.attributes.get_float("alpha", usual)


def _prelu(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    return torch.where(x < 0, x * needed(values, 1), x)


def _of_many(function: Operator) -> Operator:
    """A function of two inputs, of any number of them."""

    def run(node: ir.Node, values: Values) -> torch.Tensor:
        def both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            made = function(node, (a, b))
            assert isinstance(made, torch.Tensor)
            return made

        return reduce(both, [v for v in values if v is not None])

    return run


def _cast(node: ir.Node, values: Values) -> torch.Tensor:
    wanted = ir.DataType(node.attributes["to"].as_int())
    if (kind := torch_dtype(wanted)) is None:
        raise refused(node, f"casts to {wanted.name}")
    return needed(values).to(kind)


def _cast_like(node: ir.Node, values: Values) -> torch.Tensor:
    return needed(values).to(needed(values, 1).dtype)


ARITHMETIC: Mapping[str, Operator] = {
    "Abs": simple(torch.abs), "Add": simple(torch.add), "And": simple(torch.logical_and),
    "Cast": _cast, "CastLike": _cast_like, "Ceil": simple(torch.ceil), "Clip": _clip,
    "Cos": simple(torch.cos), "Div": simple(_divide), "Elu": _elu, "Equal": simple(torch.eq),
    "Erf": simple(torch.erf), "Exp": simple(torch.exp), "Floor": simple(torch.floor),
    "Gelu": _gelu, "Greater": simple(torch.gt), "GreaterOrEqual": simple(torch.ge),
    "HardSwish": simple(functional.hardswish), "LeakyRelu": _leaky_relu, "Less": simple(torch.lt),
    "LessOrEqual": simple(torch.le), "Log": simple(torch.log),
    "Max": _of_many(simple(torch.maximum)), "Min": _of_many(simple(torch.minimum)),
    "Mish": simple(functional.mish), "Mod": _mod, "Mul": simple(torch.mul),
    "Neg": simple(torch.neg), "Not": simple(torch.logical_not), "Or": simple(torch.logical_or),
    "PRelu": _prelu, "Pow": simple(_power), "Reciprocal": simple(torch.reciprocal),
    "Relu": simple(torch.relu), "Round": simple(torch.round), "Sigmoid": simple(torch.sigmoid),
    "Sin": simple(torch.sin), "Softplus": simple(functional.softplus), "Sqrt": simple(torch.sqrt),
    "Sub": simple(torch.sub), "Sum": _of_many(simple(torch.add)), "Swish": _swish,
    "Tanh": simple(torch.tanh), "Where": simple(torch.where),
}  # fmt: skip
