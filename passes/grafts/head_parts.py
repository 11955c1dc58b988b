"""The weights of parallel draft heads, read from the graph of a head as it was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.facts import DraftHeadFacts, read_facts
from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.weights import Matrix, constant, matrix, tensor_of

HEADS = "graftline.heads"
"""In a model's `meta`: the graph of the draft heads that a pass may put on it."""


def layer_role(head: int, layer: int) -> str:
    """The stamp of the product of one layer of one head."""
    return f"head.{head}.layer.{layer}"


def score_role(head: int) -> str:
    """The stamp of the product that scores one head's state."""
    return f"head.{head}.lm_head"


@dataclass(frozen=True)
class Linear:
    """A product by a constant matrix, and its bias or None."""

    weight: Matrix
    bias: ir.Value | None

    @classmethod
    def of(cls, node: ir.Node) -> Linear:
        """Of a MatMul and the Add behind it. Raises NotApplicable for anything else."""
        found = matrix(node.inputs[1]) if node.op_type == "MatMul" else None
        if found is None:
            raise NotApplicable("a draft head multiplies by constant matrices alone", [node.name])
        users = node.outputs[0].consumers()
        added = users[0].inputs if len(users) == 1 and users[0].op_type == "Add" else ()
        fits = (v for v in map(constant, added) if v is not None and _row(v, found.shape[1]))
        return cls(found, next(fits, None))

    def rows(self) -> ir.TensorProtocol | None:
        """The matrix [out, in] where it is stored so, unread."""
        return tensor_of(self.weight.stored) if self.weight.turned else None

    def __call__(self, rows: Array) -> Array:
        """What it makes of rows [..., in], in numpy and fp64."""
        product = rows @ self.weight.rows().astype(np.float64).T
        return product if self.bias is None else product + tensor_of(self.bias).numpy()


@dataclass(frozen=True)
class HeadParts:
    """`layers[j][i]`: layer j of head i; `scores[i]` scores its last state, one and the same for
    all heads where they share it."""

    layers: tuple[tuple[Linear, ...], ...]
    scores: tuple[Linear, ...]
    shared: bool

    @classmethod
    def of(cls, model: ir.Model) -> HeadParts:
        """Of a head's own graph. Raises NotApplicable where a product is not there."""
        facts = read_facts(model)
        assert isinstance(facts, DraftHeadFacts), f"a {facts.kind} is no draft head"
        graph, every = model.graph, range(facts.heads)
        layers = (
            tuple(_stamped(graph, layer_role(i, j)) for i in every) for j in range(facts.layers)
        )
        scores = (_stamped(graph, score_role(0 if facts.shared else i)) for i in every)
        return cls(tuple(layers), tuple(scores), facts.shared)

    @property
    def heads(self) -> int:
        """How many."""
        return len(self.scores)

    @property
    def hidden(self) -> int:
        """Width of the state that they read."""
        return self.scores[0].weight.shape[0]

    @property
    def vocabulary(self) -> int:
        """Tokens that they score."""
        return self.scores[0].weight.shape[1]

    def formula(self, hidden: Array) -> Array:
        """Logits [B, N, heads, V] of hidden states [B, N, H]: h + SiLU(linear(h)) in each layer, by
        numpy, head after head."""
        return np.stack([self._head(i, hidden.astype(np.float64)) for i in range(self.heads)], 2)

    def _head(self, head: int, state: Array) -> Array:
        for layer in self.layers:
            linear = layer[head](state)
            state = state + linear / (1.0 + np.exp(-linear))
        return self.scores[head](state)


def head_parts(model: ir.Model) -> HeadParts | None:
    """Of the draft heads that a model carries, or is; scored by its own lm_head where they share
    one. None where there are none."""
    carried = model.meta.get(HEADS)
    if carried is None:
        return HeadParts.of(model) if isinstance(read_facts(model), DraftHeadFacts) else None
    parts, head = HeadParts.of(carried), with_role(model.graph, "lm_head")
    if parts.shared and head:
        return HeadParts(parts.layers, (Linear.of(head[0]),) * parts.heads, True)
    return parts


def stacked_bias(parts: Sequence[Linear]) -> Array:
    """[heads, out]; zeros where a head has none."""
    rows = [
        np.zeros(p.weight.shape[1], np.float32) if p.bias is None else tensor_of(p.bias).numpy()
        for p in parts
    ]
    return np.stack(rows).astype(np.float32)


def _stamped(graph: ir.Graph, role: str) -> Linear:
    found = with_role(graph, role)
    if not found:
        raise NotApplicable(f"the graph of the draft head has no product '{role}'")
    return Linear.of(found[0])


def _row(value: ir.Value, width: int) -> bool:
    return tuple(tensor_of(value).shape) == (width,)
