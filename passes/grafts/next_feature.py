"""next-feature: the feature that a draft head foretells, apart from the state that it scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import decoder_facts
from graftline.head_notes import NEXT_DOWN
from graftline.law import Evidence
from graftline.passes.anchors.residual import Span, Terms, block_terms, spans, without_mlp
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import matrix, tensor_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import FEATURES, Port, by_role, read_ports, write_ports
from graftline.tensors import numbers

NAME = "features.next"
INNER, MIDDLE = "law.inner", "law.middle"
"""Outputs that the law adds: what the last MLP's last matrix reads, and the stream before it."""


def foretold(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The feature is its formula in numpy: the stream behind attention, and what the head's own
    matrix makes of what the MLP's last one reads."""
    host = before.clone()
    end = _end(host)
    assert isinstance(end, _End), "it was found before"
    emit, hidden = Emit(host.graph, graft.name()), decoder_facts(host).hidden
    middle = without_mlp(end.span, end.terms, emit)
    for name, value, width in ((INNER, end.inner, "I"), (MIDDLE, middle, hidden)):
        shown = emit.op("Identity", [value])
        new_output(host.graph, shown, name, value.dtype or ir.DataType.FLOAT, ["B", "N", width])
    found, got = evaluate(host, feed), evaluate(after, graft.neutral(feed, after))[NAME]
    down = numbers(tensor_of(_down(after))).astype(np.float64)
    expected = found[MIDDLE].astype(np.float64) + found[INNER].astype(np.float64) @ down.T
    comparison = Comparison(graft.name(), "foretold", activation_dtype(after))
    return Evidence(
        "the next feature is its formula", comparison.output(NAME, got, expected), comparison.limit
    )


@dataclass(frozen=True)
class NextFeature(Graft):
    """Adds the output features.next [B, N, H] of a head that foretells its next feature apart from
    what it scores (FSPAD, arXiv 2408.15562): what leaves its last block, with a matrix of the
    head's own as the last of the block's MLP. Adds no input.
    """

    laws: ClassVar[tuple[Law, ...]] = (foretold,)

    def requires(self, model: ir.Model) -> None:
        head = model.meta.get(HEADS)
        if head is None or NEXT_DOWN not in head.graph.initializers:
            raise NotApplicable(
                "next-feature needs a head whose last MLP has a matrix of its own for the next "
                "feature (FSPAD's); give it: --head PATH, or use tap{layers=-1}"
            )
        if found := by_role(read_ports(model), FEATURES, "out"):
            raise NotApplicable("the graph has its next feature already", [found[0].name])
        if isinstance(end := _end(model), Mismatch):
            raise refusal("next-feature finds no end of the last block", [end])

    def apply(self, model: ir.Model) -> None:
        graph, end = model.graph, _end(model)
        assert isinstance(end, _End), "the pass requires it"
        emit = Emit(graph, self.name())
        given = {
            "inner": end.inner, "middle": without_mlp(end.span, end.terms, emit),
            "down": emit.initializer(NEXT_DOWN, tensor_of(_down(model))),
        }  # fmt: skip
        (value,) = write(emit, _NEXT, given, ["next"])
        shape = ("B", "N", decoder_facts(model).hidden)
        new_output(graph, value, NAME, ir.DataType.FLOAT, shape)
        port = Port(NAME, FEATURES, "out", "float32", shape)
        write_ports(model, [*read_ports(model), port])


_NEXT = """
    product = MatMul (inner, Transpose <perm = [1, 0]> (down))
    next = Add (middle, product)
"""


@dataclass(frozen=True)
class _End:
    """The last block, and what the last matrix of its MLP reads [B, N, I]."""

    span: Span
    terms: Terms
    inner: ir.Value


def _end(model: ir.Model) -> _End | Mismatch:
    found = spans(model.graph)
    if isinstance(found, Mismatch):
        return found
    if not found:
        return Mismatch.over(list(model.graph.outputs), "no stamped blocks; run anchors first")
    if isinstance(terms := block_terms(found[-1]), Mismatch):
        return terms
    node = terms.mlp[0].producer() if len(terms.mlp) == 1 else None
    inner = node.inputs[0] if node is not None else None
    if node is None or inner is None or node.op_type != "MatMul" or matrix(node.inputs[1]) is None:
        return Mismatch.over(terms.mlp, "the block's MLP does not end in one product by a matrix")
    return _End(found[-1], terms, inner)


def _down(model: ir.Model) -> ir.Value:
    """The head's matrix [H, I]."""
    head: ir.Model = model.meta[HEADS]
    return head.graph.initializers[NEXT_DOWN]
