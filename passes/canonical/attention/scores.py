"""From QK^T to the softmax of an attention spelled out: scale, soft cap, and an additive bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.canonical.lengths import above, steady
from graftline.passes.canonical.mask.lift import Lift
from graftline.passes.canonical.mask.mask import Bias
from graftline.passes.canonical.shapes import SIZES, Measures
from graftline.passes.graph.meaning import World, scalar, type_of
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.seen import HIDDEN, Seen, largest, rounding

SCORES = (1.0, 30.0, 1e3, 3e4)
"""Sizes of the random scores on which a chain is checked, as far as their type holds them."""
_SPREAD, _PROBED = 16, 64
_PASSED = frozenset({"Cast", "Identity", "Reshape", "Dropout", "Max", "Clip", "Min"})
_NO_SCORES = "a softmax over what is no product of queries and keys, scaled, capped and biased"
_GROUPED = (
    "queries and keys are multiplied in {rank} dimensions (query heads grouped by KV head): only "
    "[B, heads, N, D] is read; export with repeated KV heads"
)
_CHANGED = (
    "scores are changed by more than scale, cap and bias (they differ at scores of about {size}): "
    "clipped scores cannot be served"
)


class Scores:
    """The way from QK^T to softmax: scale, soft cap, and biases that depend on no activation."""

    def __init__(self, measures: Measures, hidden: set[ir.Value], softmax: ir.Node) -> None:
        self.hidden, self.measures = hidden, measures
        self.softmax = softmax
        self.product: ir.Node = softmax
        self.chain: list[ir.Node] = []
        self.sources: list[ir.Value] = []
        self.scale, self.softcap = 1.0, 0.0

    def walk(self) -> Mismatch | None:
        """Follow the scores up to their product; why this softmax is no attention, else None."""
        value = self.end
        while True:
            node = value.producer()
            if node is None:
                return Mismatch.at(value, "a softmax over what no product of activations makes")
            if node.op_type == "MatMul":
                self.product = node
                break
            activations = [v for v in node.inputs if v is not None and v in self.hidden]
            if len(activations) != 1 or not self._passes(node, activations[0]):
                return Mismatch.at(node, _NO_SCORES)
            self.chain.append(node)
            self.sources.extend(v for v in node.inputs if v is not None and v not in self.hidden)
            value = activations[0]
        if not all(v in self.hidden for v in self.product.inputs):
            return Mismatch.at(self.product, "a softmax over products with a weight, not with keys")
        rank = len(self.measures.shape(self.product.outputs[0]))
        if rank > 4:
            return Mismatch.at(self.product, _GROUPED.format(rank=rank))
        return self._read_scalars()

    def _passes(self, node: ir.Node, activation: ir.Value) -> bool:
        if node.op_type in ("Add", "Sub", "Where", "Tanh") or node.op_type in _PASSED:
            return node.op_type != "Sub" or node.inputs[0] is activation
        return node.op_type in ("Mul", "Div")

    def _read_scalars(self) -> Mismatch | None:
        """Scale before and after the soft cap, exactly as written, from the product upwards."""
        value = self.product.outputs[0]
        for node in reversed(self.chain):
            if node.op_type in ("Mul", "Div"):
                other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
                number = self._number(other, node)
                if isinstance(number, Mismatch):
                    return number
                factor = number if node.op_type == "Mul" else 1.0 / number
                if self.softcap:
                    self.softcap *= factor
                else:
                    self.scale *= factor
            elif node.op_type == "Tanh":
                if self.softcap:
                    return Mismatch.at(node, "scores are capped twice")
                self.softcap = 1.0
            value = node.outputs[0]
        if self.softcap:
            self.scale *= self.softcap
        return None

    def _number(self, value: ir.Value | None, node: ir.Node) -> float | Mismatch:
        number = scalar(value)
        if number is None and value is not None and steady(value, self.measures):
            array = self.measures.world(*SIZES[0]).value(value)
            number = float(array.reshape(-1)[0]) if array.size == 1 else None
        if number is None:
            why = "scores are scaled by more than one number, or by one that depends on how many "
            return Mismatch.at(node, f"{why}tokens are fed")
        return number

    def heads(self, measures: Measures) -> int:
        """Query heads, from whichever scores have four dimensions."""
        for value in [self.softmax.outputs[0], self.product.outputs[0]]:
            shape = measures.shape(value)
            if len(shape) == 4:
                return shape[1]
        shape = measures.shape(self.product.outputs[0])
        return shape[0] // SIZES[0][0]

    def as_bias(self) -> Bias:
        """What is added to the capped scores: their way to the softmax, with zeros for them."""
        end = self.end

        def lift(lifting: Lift) -> ir.Value | Mismatch:
            rank = len(self.measures.shape(end))
            return lifting.value(end, ("bh", "q", "k") if rank == 3 else ("b", "h", "q", "k"))

        product = self.product.outputs[0]
        return Bias(self.bias, lift, self.sources, self.heads(self.measures), product)

    @property
    def end(self) -> ir.Value:
        """What the softmax reads."""
        value = self.softmax.inputs[0]
        assert value is not None
        return value

    def bias(self, world: World, batch: int, length: int) -> Array | Mismatch:
        """What is added to the capped scores, [B, heads, N, N]; checked on random scores, large
        ones among them."""
        product = self.product.outputs[0]
        shape, dtype = self.product_shape(batch, length), type_of(product)
        zero = world.fork({**world.known, product: np.zeros(shape, dtype)}).value(self.end)
        if (zero.max(axis=-1) < HIDDEN).any():
            return self._blind(length)
        seen = Seen.of(zero.reshape(-1, length, length)).allowed.reshape(zero.shape)
        rng = np.random.default_rng(length)
        most = largest(dtype) / _SPREAD
        sizes = [s for s in SCORES if s <= most][: None if length <= _PROBED else 1]
        for size in sizes:
            scores = (rng.standard_normal(shape) * size).astype(dtype)
            got = world.fork({**world.known, product: scores}).value(self.end).astype(np.float64)
            want = self._capped(scores.astype(np.float64)).reshape(got.shape) + zero
            limit = 8 * rounding(dtype) * max(1.0, float(np.abs(want[seen]).max(initial=0)))
            if not np.abs(got[seen] - want[seen]).max(initial=0.0) <= limit:
                return Mismatch.over(self.chain, _CHANGED.format(size=f"{size:g}"))
        heads = self.heads(self.measures)
        return zero.reshape(batch, heads, length, length)

    def _blind(self, length: int) -> Mismatch:
        """Why rows see nothing: what reads the ids, where something does."""
        makers = [v.producer() for v in above(self.sources)]
        readers = [n for n in makers if n is not None and self.measures.tokens in n.inputs]
        if by_ids := [n for n in readers if n.op_type != "Shape"]:
            return Mismatch.over(by_ids, "the mask depends on token values: it hides whole rows")
        why = f"the mask has rows that see nothing, not even themselves (at {length} positions)"
        return Mismatch.over(self.chain, why)

    def _capped(self, scores: Array) -> Array:
        scaled = scores * self.scale
        return self.softcap * np.tanh(scaled / self.softcap) if self.softcap else scaled

    def product_shape(self, batch: int, length: int) -> tuple[int, ...]:
        """[B, heads, N, N], or [B * heads, N, N], as the graph multiplies."""
        shape = self.measures.shape(self.product.outputs[0])
        if len(shape) == 4:
            return (batch, shape[1], length, length)
        return (batch * (shape[0] // SIZES[0][0]), length, length)

    def key(self) -> str:
        """Text that is equal for chains with the same bias."""
        rows = [
            f"{n.op_type}{[id(v) for v in n.inputs if v is not None and v not in self.hidden]}"
            for n in self.chain
        ]
        return f"{rows}.{self.heads(self.measures)}"
