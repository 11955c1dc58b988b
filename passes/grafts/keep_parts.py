"""An input that says which parts of which blocks count: what a search of routes runs on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import block_of, with_role
from graftline.passes.anchors.residual import Span, Terms, block_terms, spans
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
            sizes.append(_work(span, own, part))
            for term in part:
                _gate(graph, own, term, keep, 2 * span.block + offset)
    write_ports(model, [*read_ports(model), Port(KEEP, KEEP, "in", "float32", (2 * len(terms),))])
    head = _numbers(with_role(graph, "lm_head"))
    return PartWork(tuple(sizes), sum(sizes) + head)


def _gate(graph: ir.Graph, terms: Terms, term: ir.Value, keep: ir.Value, place: int) -> None:
    for node in [n for n in term.consumers() if n in terms.sums]:
        emit = Emit(graph, "keep-parts", node)
        gate = emit.op("Gather", [keep, emit.const(f"keep.{place}", place, np.int64)])
        if term.dtype not in (None, ir.DataType.FLOAT):
            gate = emit.op("Cast", [gate], to=term.dtype)
        node.replace_input_with(list(node.inputs).index(term), emit.op("Mul", [term, gate]))


def _work(span: Span, terms: Terms, part: tuple[ir.Value, ...]) -> int:
    """Numbers in the matrices that the terms of a part are computed with, within their block."""
    stops = {span.start, *(n.outputs[0] for n in terms.sums)}
    nodes, todo = set[ir.Node](), list(part)
    while todo:
        one = todo.pop()
        node = one.producer()
        if one in stops or node is None or node in nodes or block_of(node) != span.block:
            continue
        nodes.add(node)
        todo.extend(v for v in node.inputs if v is not None)
    return _numbers(nodes)


def _numbers(nodes: Iterable[ir.Node]) -> int:
    """Numbers in the matrices that products among the nodes multiply by, turned or not."""
    read = {v for n in nodes if n.op_type in ("MatMul", "Gemm") for v in n.inputs if v is not None}
    makers = {n for v in read if (n := v.producer()) is not None and n.op_type == "Transpose"}
    read |= {v for n in makers for v in n.inputs if v is not None}
    return sum(int(v.const_value.size) for v in read if v.const_value is not None)
