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
from graftline.plugins.uniforms import UNIFORMS


def uniforms(
    model: ir.Model, emit: Emit, seed: ir.Value, ordinal: ir.Value, depth: ir.Value
) -> ir.Value:
    """[B, N] float32 in [0, 1): the number of the draw after each node, the (ordinal + depth)th of
    its sequence's seed [B]."""
    flat = emit.const("flat", [-1], np.int64)
    column = emit.const("axes.1", [1], np.int64)
    nodes = emit.op("Shape", [depth])
    seeds = emit.op("Expand", [emit.op("Unsqueeze", [seed, column]), nodes])
    turns = emit.op("Add", [emit.op("Unsqueeze", [ordinal, column]), depth])
    each = [emit.op("Reshape", [v, flat]) for v in (seeds, turns)]
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
        e, minus = self.emit, self.groups.minus
        weights = self._weights()
        sums = e.op("ReduceSum", [weights, minus], keepdims=0)
        total = e.op("ReduceSum", [sums, minus], keepdims=1)
        target = e.op("Mul", [e.op("Unsqueeze", [uniform, minus]), total])
        group, before = self._find(sums, target)
        inside = self.groups.gather(weights, group)
        zero = e.const("zero.float", 0.0, np.float32)
        rest = e.op("Max", [e.op("Sub", [target, before]), zero])
        place, _ = self._find(inside, e.op("Unsqueeze", [rest, minus]))
        start = e.op("Mul", [group, self.groups.width])
        token = e.op("Add", [start, e.op("Squeeze", [place, minus])])
        return e.op("Squeeze", [token, minus], "draws")

    def _weights(self) -> ir.Value:
        """[B, N, groups, 256]: probabilities in units of the largest, filtered by min-p."""
        e = self.emit
        axes = e.const("axes.1_2_3", [1, 2, 3], np.int64)
        zero, one = (e.const(f"{n}.float", v, np.float32) for n, v in (("zero", 0.0), ("one", 1.0)))
        peak = e.op("ReduceMax", [self.groups.maxima, self.groups.minus], keepdims=1)
        below = e.op("Sub", [self.groups.grouped, e.op("Unsqueeze", [peak, self.groups.minus])])
        warm = e.op("Greater", [self.temperature, zero])
        heat = e.op("Unsqueeze", [e.op("Where", [warm, self.temperature, one]), axes])
        weights = e.op("Exp", [e.op("Div", [below, heat])])
        likely = e.op("GreaterOrEqual", [weights, e.op("Unsqueeze", [self.min_p, axes])])
        return e.op("Mul", [weights, e.op("Cast", [likely], to=ir.DataType.FLOAT)])

    def _find(self, weights: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Along the last axis, kept as 1: the first place where the sum of `weights` exceeds
        `target`, and the sum before it. Rounding may put `target` at the whole sum: then the last
        place that has a weight."""
        e, minus = self.emit, self.groups.minus
        sums = e.op("CumSum", [weights, e.const("last", -1, np.int64)])
        whole = e.op("ReduceMax", [sums, minus], keepdims=1)
        reached = e.op("LessOrEqual", [sums, target])
        passed = e.op("And", [reached, e.op("Less", [sums, whole])])
        counted = e.op("Cast", [passed], to=ir.DataType.INT64)
        place = e.op("ReduceSum", [counted, minus], keepdims=1)
        zero = e.const("zero.float", 0.0, np.float32)
        before = e.op("ReduceMax", [e.op("Where", [passed, sums, zero]), minus], keepdims=1)
        return place, before
