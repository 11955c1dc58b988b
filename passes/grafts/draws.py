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
    nodes = Shape (depth)
    seeds = Reshape (Expand (Unsqueeze (seed, axis_1), nodes), flat)
    turns = Reshape (Add (Unsqueeze (ordinal, axis_1), depth), flat)
"""
_WEIGHTS = """
    axes = Constant <value = int64[3] {1, 2, 3}> ()
    below = Sub (grouped, Unsqueeze (ReduceMax <keepdims = 1> (maxima, last_axis), last_axis))
    heat = Where (Greater (temperature, zero_f), temperature, one_f)
    unfiltered = Exp (Div (below, Unsqueeze (heat, axes)))
    kept = Cast <to = 1> (GreaterOrEqual (unfiltered, Unsqueeze (min_p, axes)))
    weights = Mul (unfiltered, kept)
"""
"""[B, N, groups, 256]: probabilities in units of the largest, filtered by min-p."""
_FIND = """
    end = Constant <value = int64 {-1}> ()
    sums = CumSum (weights, end)
    inside = Less (sums, ReduceMax <keepdims = 1> (sums, last_axis))
    passed = And (LessOrEqual (sums, target), inside)
    place = ReduceSum <keepdims = 1> (Cast <to = 7> (passed), last_axis)
    before = ReduceMax <keepdims = 1> (Where (passed, sums, zero_f), last_axis)
"""
"""Along the last axis, kept as 1: the first place where the sum of `weights` exceeds `target`, and
the sum before it. Rounding may put `target` at the whole sum: then the last place with a weight."""
_TARGET = """
    sums = ReduceSum <keepdims = 0> (weights, last_axis)
    target = Mul (Unsqueeze (uniform, last_axis), ReduceSum <keepdims = 1> (sums, last_axis))
"""
_REST = """
    rest = Unsqueeze (Max (Sub (target, before), zero_f), last_axis)
"""
_TOKEN = """
    token = Add (Mul (group, width), Squeeze (place, last_axis))
    draws = Squeeze (token, last_axis)
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
