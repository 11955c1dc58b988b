"""From the softmax of an attention spelled out to its product with V: nothing may happen to the
probabilities on the way, and that is told by values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graftline.passes.canonical.attention.scores import Scores
from graftline.passes.canonical.lengths import SQUARE, constants_above, lengths_around
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.meaning import type_of
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.seen import rounding

_BETWEEN = 24
"""Nodes between a softmax and a product, beyond which there is no such product."""


@dataclass
class Probabilities:
    """Follows the probabilities of the attentions of one graph to their values."""

    measures: Measures
    hidden: set[ir.Value]
    proven: set[str] = field(default_factory=set[str])
    """Ways that were proven to change nothing."""

    def times_values(self, softmax: ir.Node, scores: Scores) -> ir.Node | Mismatch:
        """The product with V that probabilities run into; what lies between changes nothing."""
        axis = int(softmax.attributes.get_int("axis", -1) or 0)
        rank = len(self.measures.shape(softmax.outputs[0]))
        if axis % rank != rank - 1:
            why = f"softmax runs over axis {axis} of scores, not over the keys, their last axis"
            return Mismatch.at(softmax, why)
        way = self._between(softmax)
        if isinstance(way, Mismatch):
            return way
        end, between = way
        changed = self._changed(softmax, end, between, scores) if between else None
        return changed or end

    def _between(self, softmax: ir.Node) -> tuple[ir.Node, list[ir.Node]] | Mismatch:
        """The product with V, and the nodes on the way from the probabilities to it."""
        inside, ends = dict[ir.Node, None](), dict[ir.Node, None]()
        todo = [softmax.outputs[0]]
        while todo:
            value = todo.pop()
            if value.is_graph_output():
                return Mismatch.at(softmax, "attention probabilities are an output")
            for node, index in value.uses():
                if node.op_type == "MatMul" and index == 0:
                    ends[node] = None
                elif node not in inside:
                    inside[node] = None
                    todo.extend(node.outputs)
            if len(inside) > _BETWEEN:
                return Mismatch.at(softmax, "attention probabilities are not multiplied by values")
        if len(ends) != 1:
            return Mismatch.over([*ends, softmax], "attention probabilities are used twice")
        return next(iter(ends)), list(inside)

    def _changed(
        self, softmax: ir.Node, end: ir.Node, between: list[ir.Node], scores: Scores
    ) -> Mismatch | None:
        """What changes probabilities (a second mask, a clip): told by values around every constant
        above them. None where nothing does."""
        key = f"{scores.key()}{[(n.op_type, [id(v) for v in self._given([n])]) for n in between]}"
        if key in self.proven:
            return None
        self.proven.add(key)
        given = self._given(between)
        wide = max(self.measures.shape(softmax.outputs[0])[:-2], default=1)
        constants = constants_above([*given, *scores.sources])
        per_row = any("N" in (self.measures.dims(v) or ["N"]) for v in given)
        for n in lengths_around(constants, self.measures.most):
            if wide * n * n > SQUARE:
                why = f"what changes attention probabilities cannot be evaluated for {n} positions"
                return Mismatch.over(between, why) if per_row else None
            gap = self._gap(n, softmax.outputs[0], end, scores)
            if not gap <= 8 * rounding(type_of(softmax.outputs[0])):
                why = "attention probabilities are changed after the softmax (masked again, clipped"
                return Mismatch.over(between, f"{why} or rescaled; by {gap:.2g} at {n} positions)")
        return None

    def _gap(self, n: int, probabilities: ir.Value, end: ir.Node, scores: Scores) -> float:
        """How far what meets the values is from the probabilities, for random scores."""
        product = scores.product.outputs[0]
        world = self.measures.world(2, n)
        random = np.random.default_rng(n).standard_normal(scores.product_shape(2, n)) * 3
        world.known[product] = random.astype(type_of(product))
        met = end.inputs[0]
        assert met is not None
        before, after = world.value(probabilities), world.value(met)
        return float(np.abs(after.reshape(before.shape).astype(np.float64) - before).max())

    def _given(self, nodes: list[ir.Node]) -> list[ir.Value]:
        """The weight-free operands of nodes."""
        return [v for n in nodes for v in n.inputs if v is not None and v not in self.hidden]

