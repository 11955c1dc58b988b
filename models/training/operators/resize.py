"""Resize by its definition: every output place reads one or two input places along an axis."""

from __future__ import annotations

import onnx_ir as ir
import torch

from graftline.models.training.operators.operator import (
    Values,
    given,
    needed,
    refused,
    whole_numbers,
)

MODES = ("nearest", "linear")
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def resize(node: ir.Node, values: Values) -> torch.Tensor:
    """The input at other sizes. Raises NotApplicable for cubic, cropping and filtering forms."""
    x, sizes, factors = needed(values), given(values, 3), given(values, 2)
    mode = node.attributes.get_string("mode", "nearest") or ""
    how = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") or ""
    strange = [n for n in ("antialias", "exclude_outside") if node.attributes.get_int(n, 0)]
    strange += [n for n in (mode,) if n not in MODES] + [n for n in (how,) if n not in COORDINATES]
    strange += ["keep_aspect_ratio_policy"] * (
        node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch"
    )
    if strange:
        raise refused(node, f"has {strange[0]}")
    axes = [a % x.ndim for a in node.attributes.get_ints("axes", None) or range(x.ndim)]
    wanted = whole_numbers(sizes) if sizes is not None and sizes.numel() else None
    scales = [float(n) for n in factors.tolist()] if factors is not None and factors.numel() else []
    for place, axis in enumerate(axes):
        have = x.shape[axis]
        count = wanted[place] if wanted else int(have * scales[place])
        if count == have:
            continue
        scale = scales[place] if scales else count / have
        at = _coordinates(how, count, have, scale)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(node, at).clamp(0, have - 1))
        else:
            x = _between(x, axis, at)
    return x


def _coordinates(how: str, count: int, have: int, scale: float) -> torch.Tensor:
    """Where each output place is among the input's."""
    out = torch.arange(count, dtype=torch.float64)
    if how == "asymmetric":
        return out / scale
    if how == "align_corners":
        return out * (have - 1) / (count - 1) if count > 1 else torch.zeros_like(out)
    if how == "pytorch_half_pixel" and count == 1:
        return torch.zeros_like(out)
    return (out + 0.5) / scale - 0.5


def _nearest(node: ir.Node, at: torch.Tensor) -> torch.Tensor:
    how = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if how == "floor":
        return at.floor().long()
    if how == "ceil":
        return at.ceil().long()
    return ((at - 0.5).ceil() if how == "round_prefer_floor" else (at + 0.5).floor()).long()


def _between(x: torch.Tensor, axis: int, at: torch.Tensor) -> torch.Tensor:
    """Two places in the share in which `at` lies between them; beyond the ends the end."""
    low = at.floor().long()
    shape = [1] * x.ndim
    shape[axis] = -1
    share = (at - low).to(x.dtype).reshape(shape)
    ends = [place.clamp(0, x.shape[axis] - 1) for place in (low, low + 1)]
    first, second = (x.index_select(axis, place) for place in ends)
    return first * (1 - share) + second * share
