"""The weights of draft heads, read from the graph of a head as it was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.facts import DraftHeadFacts, read_facts
from graftline.head_notes import MARKOV, AdapterNote, Note
from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.weights import Matrix, constant, matrix, tensor_of

HEADS = "graftline.heads"
"""In a model's `meta`: the graph of the draft heads that a pass may put on it."""


Noted = TypeVar("Noted", bound=Note)


def carried(model: ir.Model, kind: type[Noted], needs: str) -> tuple[ir.Model, Noted]:
    """The graph of a head that a model carries, and what that notes of this kind. Raises
    NotApplicable, in the words of `needs`, where there is none."""
    head: ir.Model | None = model.meta.get(HEADS)
    note = None if head is None else kind.read(head)
    if head is None or note is None:
        raise NotApplicable(needs)
    return head, note


def layer_role(head: int, layer: int) -> str:
    """The stamp of the product of one layer of one head."""
    return f"head.{head}.layer.{layer}"


RESIDUAL, TABLE = "head.residual", "head.embedding"
"""The stamps of a sequential head: the product beside its first layer, its look-up of tokens."""


DRAFT_LAYER, DRAFT_SCORES = "draft_heads.layer", "draft_heads.scores"
"""The stamps of the products of heads that a pass has put together: those of their layers, and
those that give logits."""


def score_role(head: int) -> str:
    """The stamp of the product that scores one head's state."""
    return f"head.{head}.lm_head"


def is_scoring(role: str) -> bool:
    """Whether it is the stamp of a product that gives logits: of the host's lm_head, or of heads.
    """
    return role in ("lm_head", DRAFT_SCORES) or role.endswith(".lm_head")


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
            what = "a draft head multiplies by constant matrices alone"
            raise NotApplicable(what, [node.name or node.op_type])
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
    all heads where they share it. `bigrams`: w1 and w2 [V, r] of a low-rank matrix that adds to
    each head's logits what the token before says."""

    layers: tuple[tuple[Linear, ...], ...]
    scores: tuple[Linear, ...]
    shared: bool
    bigrams: tuple[ir.Value, ir.Value] | None = None

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
        held = graph.initializers
        pair = (held[f"{MARKOV}w1"], held[f"{MARKOV}w2"]) if facts.markov else None
        return cls(tuple(layers), tuple(scores), facts.shared, pair)

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

    def formula(self, hidden: Array, last: Array | None = None) -> Array:
        """Logits [B, N, heads, V] of hidden states [B, N, H]: h + SiLU(linear(h)) in each layer, by
        numpy, head after head; with bigrams of the token `last` [B, N] behind each row."""
        found = [self._head(i, hidden.astype(np.float64)) for i in range(self.heads)]
        if self.bigrams is not None:
            assert last is not None, "heads with bigrams read the token behind a row"
            w1, w2 = (tensor_of(value).numpy().astype(np.float64) for value in self.bigrams)
            for logits in found:
                logits += w1[last] @ w2.T
                last = logits.argmax(-1)
        return np.stack(found, 2)

    def _head(self, head: int, state: Array) -> Array:
        for layer in self.layers:
            state = state + _silu(layer[head](state))
        return self.scores[head](state)


@dataclass(frozen=True)
class SequentialHead:
    """A head that also reads the embeddings of the tokens that were drafted before its own (Hydra,
    arXiv 2402.05109). Of all it reads, x, its first layer makes residual(x) + SiLU(linear(x))."""

    table: ir.Value
    first: Linear
    residual: Linear
    layers: tuple[Linear, ...]
    """Those behind the first: h + SiLU(linear(h))."""
    score: Linear

    @classmethod
    def of(cls, model: ir.Model) -> SequentialHead:
        """Of a head's own graph. Raises NotApplicable where a product is not there."""
        facts, graph = read_facts(model), model.graph
        assert isinstance(facts, DraftHeadFacts), f"a {facts.kind} is no draft head"
        (look_up,) = with_role(graph, TABLE)
        table = constant(look_up.inputs[0])
        assert table is not None, "tokens are looked up in a constant"
        first, *layers = (_stamped(graph, layer_role(0, j)) for j in range(facts.layers))
        residual, score = _stamped(graph, RESIDUAL), _stamped(graph, score_role(0))
        return cls(table, first, residual, tuple(layers), score)

    @property
    def heads(self) -> int:
        """It is one."""
        return 1

    @property
    def hidden(self) -> int:
        """Width of the state that it reads."""
        return self.score.weight.shape[0]

    @property
    def vocabulary(self) -> int:
        """Tokens that it scores."""
        return self.score.weight.shape[1]

    def formula(self, hidden: Array, tokens: Array) -> Array:
        """Logits [B, N, 1, V] of states [B, N, H] and tokens [B, N, T] behind them, by numpy."""
        known = tensor_of(self.table).numpy()[tokens].astype(np.float64)
        given = [hidden.astype(np.float64), known.reshape(*tokens.shape[:2], -1)]
        x = np.concatenate(given, axis=-1)
        state = self.residual(x) + _silu(self.first(x))
        for layer in self.layers:
            state = state + _silu(layer(state))
        return self.score(state)[:, :, None]


def head_parts(model: ir.Model) -> HeadParts | SequentialHead | None:
    """Of the draft heads that a model carries, or is; scored by its own lm_head where they share
    one. None where there are none, or such as are graphs of their own."""
    if isinstance(own := read_facts(model), DraftHeadFacts):
        return SequentialHead.of(model) if own.tokens else HeadParts.of(model)
    if (heads := carried_heads(model)) is None:
        return None
    parts, head = HeadParts.of(heads), with_role(model.graph, "lm_head")
    if parts.shared and head:
        return HeadParts(parts.layers, (Linear.of(head[0]),) * parts.heads, True)
    return parts


def carried_heads(model: ir.Model) -> ir.Model | None:
    """The graph that a model carries of heads which read nothing but a state of its own; None
    without any."""
    head: ir.Model | None = model.meta.get(HEADS)
    facts = None if head is None else read_facts(head)
    if head is None or not isinstance(facts, DraftHeadFacts) or facts.tokens or facts.markov:
        return None
    return head if AdapterNote.read(head) is None else None


def _silu(rows: Array) -> Array:
    return rows / (1.0 + np.exp(-rows))


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
