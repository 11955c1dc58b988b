"""Operators that move numbers without changing them, and those that speak of shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    whole_numbers,
)


def _axis(node: ir.Node, usual: int) -> int:
    return node.attributes.get_int("axis", usual)


def _shape(node: ir.Node, values: Values) -> torch.Tensor:
    sizes = needed(values).shape
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
    return torch.tensor(sizes[start:end], dtype=torch.int64)


def _size(node: ir.Node, values: Values) -> torch.Tensor:
    return torch.tensor(needed(values).numel())


def _reshape(node: ir.Node, values: Values) -> torch.Tensor:
    x, sizes = needed(values), whole_numbers(needed(values, 1))
    if not node.attributes.get_int("allowzero", 0):
        sizes = [size if size else x.shape[place] for place, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    axis = _axis(node, 1) % (x.ndim + 1)
    return x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _transpose(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    order = node.attributes.get_ints("perm", None) or range(x.ndim)[::-1]
    return x.permute(*order)


def _concat(node: ir.Node, values: Values) -> torch.Tensor:
    return torch.cat([v for v in values if v is not None], _axis(node, 0))


def _split(node: ir.Node, values: Values) -> Sequence[torch.Tensor]:
    x, axis = needed(values), _axis(node, 0)
    if (sizes := given(values, 1)) is not None:
        return x.split(whole_numbers(sizes), axis)
    return x.split(-(-x.shape[axis] // len(node.outputs)), axis)


def _slice(node: ir.Node, values: Values) -> torch.Tensor:
    """Python's own slices, but that ONNX counts the end of a step backwards from -1."""
    x = needed(values)
    starts, ends = (whole_numbers(needed(values, place)) for place in (1, 2))
    axes, steps = given(values, 3), given(values, 4)
    along = range(len(starts)) if axes is None else whole_numbers(axes)
    by = [1] * len(starts) if steps is None else whole_numbers(steps)
    for axis, start, end, step in zip(along, starts, ends, by, strict=True):
        count = x.shape[axis]
        last = None if step < 0 and end < -count else end
        places = range(count)[slice(start, last, step)]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _gather(node: ir.Node, values: Values) -> torch.Tensor:
    x, places = needed(values), needed(values, 1).long()
    axis = _axis(node, 0) % x.ndim
    flat = places.reshape(-1) % x.shape[axis]
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _unsqueeze(node: ir.Node, values: Values) -> torch.Tensor:
    x, axes = needed(values), whole_numbers(needed(values, 1))
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: ir.Node, values: Values) -> torch.Tensor:
    x, axes = needed(values), given(values, 1)
    return x.squeeze() if axes is None else x.squeeze(whole_numbers(axes))


def _expand(node: ir.Node, values: Values) -> torch.Tensor:
    x = needed(values)
    return x.expand(torch.broadcast_shapes(x.shape, whole_numbers(needed(values, 1))))


def _tile(node: ir.Node, values: Values) -> torch.Tensor:
    return needed(values).tile(whole_numbers(needed(values, 1)))


def _pad(node: ir.Node, values: Values) -> torch.Tensor:
    x, mode = needed(values), node.attributes.get_string("mode", "constant")
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    pads, axes = whole_numbers(needed(values, 1)), given(values, 3)
    along = [a % x.ndim for a in whole_numbers(axes)] if axes is not None else list(range(x.ndim))
    both = {axis: (pads[n], pads[n + len(along)]) for n, axis in enumerate(along)}
    first = min((axis for axis, pair in both.items() if any(pair)), default=x.ndim)
    flat = [n for axis in reversed(range(first, x.ndim)) for n in both.get(axis, (0, 0))]
    if not flat:
        return x
    value = given(values, 2)
    if mode == "constant":
        return functional.pad(x, flat, "constant", 0.0 if value is None else float(value))
    if first < 2 or mode not in names:
        raise refused(node, f"pads axis {first} in the mode {mode}")
    return functional.pad(x, flat, names[mode])


def _constant_of_shape(node: ir.Node, values: Values) -> torch.Tensor:
    value = node.attributes.get("value")
    filled = torch.zeros(1) if value is None else torch.from_numpy(value.as_tensor().numpy().copy())
    return filled.reshape(()).expand(whole_numbers(needed(values)))


def _range(node: ir.Node, values: Values) -> torch.Tensor:
    start, end, step = (needed(values, place).item() for place in range(3))
    return torch.arange(start, end, step, dtype=needed(values).dtype)


def _depth_to_space(node: ir.Node, values: Values) -> torch.Tensor:
    x, size = needed(values), node.attributes["blocksize"].as_int()
    if node.attributes.get_string("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    b, c, h, w = x.shape
    x = x.reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // size**2, h * size, w * size)


def _space_to_depth(node: ir.Node, values: Values) -> torch.Tensor:
    x, size = needed(values), node.attributes["blocksize"].as_int()
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, c * size**2, h // size, w // size)


MOVES: Mapping[str, Operator] = {
    "Concat": _concat, "ConstantOfShape": _constant_of_shape, "DepthToSpace": _depth_to_space,
    "Expand": _expand, "Flatten": _flatten, "Gather": _gather,
    "Identity": simple(torch.clone), "Pad": _pad, "Range": _range, "Reshape": _reshape,
    "Shape": _shape, "Size": _size, "Slice": _slice, "SpaceToDepth": _space_to_depth,
    "Split": _split, "Squeeze": _squeeze, "Tile": _tile, "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip
