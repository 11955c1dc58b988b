"""Chains of nodes that only move an activation: repeated KV heads, transposes, constant scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.canonical.lengths import steady
from graftline.passes.canonical.shapes import SIZES, Measures
from graftline.passes.graph.meaning import type_of
from graftline.passes.graph.mismatch import Mismatch

MOVES = frozenset(
    [
        "Reshape",
        "Transpose",
        "Expand",
        "Unsqueeze",
        "Squeeze",
        "Cast",
        "Identity",
        "Slice",
        "Split",
        "Gather",
        "Tile",
        "Neg",
    ]
)
_SCALES = frozenset({"Mul", "Div"})
_TOLD = 2
"""How many reasons the refusal of an operand gives."""


@dataclass(frozen=True)
class Heads:
    """An operand of attention traced to its heads: operand = scale * moved(repeated(base))."""

    base: ir.Value
    """[B, heads, N, D], before any repetition; [B, N, heads, D] when `rows_first`."""
    scale: float
    rows_first: bool = False


def single_source(
    node: ir.Node, hidden: set[ir.Value], measures: Measures, scales: bool = True
) -> ir.Value | Mismatch:
    """The activation that a node moves or scales by one number."""
    sources = [v for v in node.inputs if v is not None and v in hidden]
    if len(sources) != 1:
        return Mismatch.at(node, f"combines {len(sources)} activations")
    if node.op_type in MOVES and node.inputs[0] is sources[0]:
        return sources[0]
    if not scales or node.op_type not in _SCALES:
        return Mismatch.at(node, "computes with heads, which are only moved and scaled on this way")
    other = node.inputs[1] if node.inputs[0] is sources[0] else node.inputs[0]
    shape = measures.each[0].of(other)
    one = shape is not None and all(d == 1 for d in shape)
    if other is None or not one or (node.op_type == "Div" and other is node.inputs[0]):
        return Mismatch.at(node, "heads are scaled by more than one number")
    if not steady(other, measures):
        why = "heads are scaled by a number that depends on how many tokens are fed"
        return Mismatch.at(node, why, final=True)
    return sources[0]


def trace_heads(
    operand: ir.Value, heads: int, key: bool, hidden: set[ir.Value], measures: Measures
) -> Heads | Mismatch:
    """Trace an operand of QK^T (key: transposed) or of the product with V to its heads.

    The furthest value along the chain that has the shape [B, heads', N, D], and whose repetition
    over groups of heads gives the operand, is the base.
    """
    chain, found = [operand], list[Mismatch]()
    while (node := chain[-1].producer()) is not None:
        source = single_source(node, hidden, measures)
        if isinstance(source, Mismatch):
            found.append(source)
            break
        chain.append(source)
    if found and found[0].final:
        return found[0]
    for rows_first in (False, True):
        for base in reversed(chain):
            scale = _explains(base, operand, heads, key, measures, rows_first)
            if not isinstance(scale, Mismatch):
                return Heads(base, scale, rows_first)
            if len(measures.shape(base)) == 4:
                found.append(scale)
    why = "an attention operand cannot be traced to heads [B, heads, N, D]"
    nearest = "; ".join(dict.fromkeys(m.text for m in found[:_TOLD]))
    return Mismatch.over(chain, f"{why} ({nearest})" if nearest else why)


def _explains(
    base: ir.Value, operand: ir.Value, heads: int, key: bool, measures: Measures, rows_first: bool
) -> float | Mismatch:
    """The number by which an operand is `base`, moved and repeated, at two sizes."""
    scale = 1.0
    for measure, (batch, length) in list(zip(measures.each, SIZES, strict=True))[::2]:
        shape, target = measure.of(base), measure.of(operand)
        if shape is None or target is None or len(shape) != 4:
            return Mismatch.at(base, f"has the shape {measures.dims(base)}")
        count, rows = (shape[2], shape[1]) if rows_first else shape[1:3]
        if shape[0] != batch or rows != length or heads % max(count, 1):
            return Mismatch.at(base, f"has the shape {measures.dims(base)}, for {heads} heads")
        x = np.random.default_rng(0).standard_normal(shape).astype(type_of(base))
        world = measures.world(batch, length)
        world.shapes = measure.shapes
        world.known[base] = x
        got = world.value(operand).astype(np.float64)
        wide = x.astype(np.float64)
        want = _moved(wide.swapaxes(1, 2) if rows_first else wide, got, heads, key)
        if want is None:
            return Mismatch.at(base, f"cannot become heads of the shape {measures.dims(operand)}")
        factor = float(np.median(got / want))
        if not np.allclose(got, factor * want, rtol=1e-5, atol=1e-6):
            return Mismatch.at(base, "its numbers are put in another order than heads are repeated")
        scale = factor
    return scale


def _moved(x: Array, like: Array, heads: int, key: bool) -> Array | None:
    """The operand that heads `x` stand for, in the shape of `like`, or None when it has another."""
    for repeat in {1, heads // x.shape[1]} if x.shape[1] != heads else {1}:
        moved = np.repeat(x, repeat, axis=1)
        moved = np.swapaxes(moved, -1, -2) if key else moved
        if moved.shape == like.shape:
            return moved
        merged = (moved.shape[0] * moved.shape[1], *moved.shape[2:])
        if merged == like.shape:
            return moved.reshape(merged)
    return None
