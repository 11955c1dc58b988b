"""An input that says which parts of which blocks count: what a search of routes runs on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import with_role
from graftline.passes.anchors.residual import Terms, block_terms, spans
from graftline.passes.anchors.work import numbers, part_work
from graftline.passes.graph.emit import Emit, new_input
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.ports import Port, read_ports, write_ports

KEEP = "keep"
"""The name and role of the input [2 L]: of each block its attention and its MLP, 1 or 0."""


@dataclass(frozen=True)
class PartWork:
    """Numbers in the matrices that each part reads, [2 L], and in all that a step reads."""

    parts: tuple[int, ...]
    whole: int


def keep_parts(model: ir.Model) -> PartWork:
    """Multiply what each part of each block adds to the stream by its entry of a new input `keep`:
    a graph of all routes, in which what is skipped is computed all the same. Neutral: ones.

    Raises NotApplicable for a host whose blocks are not sums of attention and MLP.
    """
    graph = model.graph
    found = spans(graph)
    if isinstance(found, Mismatch):
        raise refusal("no single residual stream to search routes along", [found])
    if not found:
        raise NotApplicable("routes are searched among stamped blocks; run anchors first")
    terms = [block_terms(span) for span in found]
    if odd := [one for one in terms if isinstance(one, Mismatch)]:
        raise refusal("no parts of blocks to search routes among", odd)
    keep = new_input(graph, KEEP, ir.DataType.FLOAT, [2 * len(terms)])
    sizes: list[int] = []
    for span, own in zip(found, terms, strict=True):
        assert isinstance(own, Terms), "others were refused"
        for offset, part in enumerate((own.attention, own.mlp)):
            sizes.append(part_work(span, own, part))
            for term in part:
                _gate(graph, own, term, keep, 2 * span.block + offset)
    write_ports(model, [*read_ports(model), Port(KEEP, KEEP, "in", "float32", (2 * len(terms),))])
    return PartWork(tuple(sizes), sum(sizes) + numbers(with_role(graph, "lm_head")))


def _gate(graph: ir.Graph, terms: Terms, term: ir.Value, keep: ir.Value, place: int) -> None:
    for node in [n for n in term.consumers() if n in terms.sums]:
        emit = Emit(graph, "keep-parts", node)
        gate = emit.op("Gather", [keep, emit.const(f"keep.{place}", place, np.int64)])
        if term.dtype not in (None, ir.DataType.FLOAT):
            gate = emit.op("Cast", [gate], to=term.dtype)
        node.replace_input_with(list(node.inputs).index(term), emit.op("Mul", [term, gate]))
