"""One draw from the target's distribution at every node of a tree, in the graph.

The meaning is that of transformers' temperature and min-p filters: softmax of logits / temperature,
tokens kept where p >= min_p * max p, renormalised; the draw is the token at quantile u, ids
ascending. The number u is a function of the seed and of how many tokens the sequence has chosen
before (`Uniforms`), so a seed's text does not depend on trees, batches or steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.passes.grafts.reduce_logits import Groups
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.operators import call
from graftline.passes.graph.text import write
from graftline.plugins.uniforms import UNIFORMS

_TURNS = """
    axis_1 = Constant <value = int64[1] {1}> ()
    flat = Constant <value = int64[1] {-1}> ()
    nodes = Shape (depth)
    seed_column = Unsqueeze (seed, axis_1)
    seeds_each = Expand (seed_column, nodes)
    ordinal_column = Unsqueeze (ordinal, axis_1)
    turns_each = Add (ordinal_column, depth)
    seeds = Reshape (seeds_each, flat)
    turns = Reshape (turns_each, flat)
"""
_WEIGHTS = """
    zero = Constant <value = float {0.0}> ()
    one = Constant <value = float {1.0}> ()
    axes = Constant <value = int64[3] {1, 2, 3}> ()
    last = Constant <value = int64[1] {-1}> ()
    peak = ReduceMax <keepdims = 1> (maxima, last)
    peak_each = Unsqueeze (peak, last)
    below = Sub (grouped, peak_each)
    warm = Greater (temperature, zero)
    heat = Where (warm, temperature, one)
    heat_each = Unsqueeze (heat, axes)
    scaled = Div (below, heat_each)
    unfiltered = Exp (scaled)
    least = Unsqueeze (min_p, axes)
    likely = GreaterOrEqual (unfiltered, least)
    kept = Cast <to = 1> (likely)
    weights = Mul (unfiltered, kept)
"""
"""[B, N, groups, 256]: probabilities in units of the largest, filtered by min-p."""
_FIND = """
    zero = Constant <value = float {0.0}> ()
    end = Constant <value = int64 {-1}> ()
    last = Constant <value = int64[1] {-1}> ()
    sums = CumSum (weights, end)
    whole = ReduceMax <keepdims = 1> (sums, last)
    reached = LessOrEqual (sums, target)
    inside = Less (sums, whole)
    passed = And (reached, inside)
    counted = Cast <to = 7> (passed)
    place = ReduceSum <keepdims = 1> (counted, last)
    passed_sums = Where (passed, sums, zero)
    before = ReduceMax <keepdims = 1> (passed_sums, last)
"""
"""Along the last axis, kept as 1: the first place where the sum of `weights` exceeds `target`, and
the sum before it. Rounding may put `target` at the whole sum: then the last place with a weight."""
_TARGET = """
    last = Constant <value = int64[1] {-1}> ()
    sums = ReduceSum <keepdims = 0> (weights, last)
    total = ReduceSum <keepdims = 1> (sums, last)
    each = Unsqueeze (uniform, last)
    target = Mul (each, total)
"""
_REST = """
    zero = Constant <value = float {0.0}> ()
    last = Constant <value = int64[1] {-1}> ()
    left = Sub (target, before)
    positive = Max (left, zero)
    rest = Unsqueeze (positive, last)
"""
_TOKEN = """
    last = Constant <value = int64[1] {-1}> ()
    start = Mul (group, width)
    within = Squeeze (place, last)
    token = Add (start, within)
    draws = Squeeze (token, last)
"""


def uniforms(
    model: ir.Model, emit: Emit, seed: ir.Value, ordinal: ir.Value, depth: ir.Value
) -> ir.Value:
    """[B, N] float32 in [0, 1): the number of the draw after each node, the (ordinal + depth)th of
    its sequence's seed [B]."""
    inputs = {"seed": seed, "ordinal": ordinal, "depth": depth}
    *each, nodes = write(emit, _TURNS, inputs, ("seeds", "turns", "nodes"))
    (numbers,) = call(model, emit, UNIFORMS, each, rows=1)
    first = emit.op("Gather", [numbers, emit.const("zero", 0, np.int64)], axis=1)
    return emit.op("Reshape", [first, nodes])


@dataclass
class Draws:
    """Draws by inverse distribution function in two stages, as `Groups` reduces: first the group of
    256 tokens, then the token, so that no sum over the whole vocabulary is cumulative.

    `temperature` and `min_p` are [B] float32. Where the temperature is 0 the draw means nothing.
    """

    emit: Emit
    groups: Groups
    temperature: ir.Value
    min_p: ir.Value

    def of(self, uniform: ir.Value) -> ir.Value:
        """[B, N] int64: the tokens at the quantiles `uniform` [B, N]."""
        e, groups = self.emit, self.groups
        inputs = {
            "maxima": groups.maxima, "grouped": groups.grouped,
            "temperature": self.temperature, "min_p": self.min_p,
        }  # fmt: skip
        (weights,) = write(e, _WEIGHTS, inputs, ("weights",))
        inputs = {"weights": weights, "uniform": uniform}
        sums, target = write(e, _TARGET, inputs, ("sums", "target"))
        inputs = {"weights": sums, "target": target}
        group, before = write(e, _FIND, inputs, ("place", "before"))
        (rest,) = write(e, _REST, {"target": target, "before": before}, ("rest",))
        inputs = {"weights": groups.gather(weights, group), "target": rest}
        place, _ = write(e, _FIND, inputs, ("place", "before"))
        inputs = {"group": group, "place": place, "width": groups.width}
        return write(e, _TOKEN, inputs, ("draws",), ("draws",))[0]
