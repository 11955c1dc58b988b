"""The residual stream from block to block, and what each block adds to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.anchors.anchors import block_of, block_outputs, with_role
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.weights import constant
from graftline.passes.pipeline.graft import BLOCK, ROLE


@dataclass(frozen=True)
class Span:
    """A block's place on the residual stream: its number in the host, the stream as it enters and
    as it leaves."""

    block: int
    start: ir.Value
    end: ir.Value


@dataclass(frozen=True)
class Terms:
    """A block as a sum: the Adds that make its end of its start, and what they add to it. What is
    computed with the block's attention is of `attention`, all else of `mlp`."""

    sums: tuple[ir.Node, ...]
    attention: tuple[ir.Value, ...]
    mlp: tuple[ir.Value, ...]


def spans(graph: ir.Graph) -> list[Span] | Mismatch:
    """All blocks of a stamped graph along the stream, in order; none without stamps."""
    ends = block_outputs(graph)
    if not ends:
        return []
    first = _entry(graph)
    if isinstance(first, Mismatch):
        return first
    starts = [first, *ends[:-1]]
    numbers = [block_of(n) for n in with_role(graph, "residual")]
    return [
        Span(number, start, end)
        for number, start, end in zip(numbers, starts, ends, strict=True)
        if number is not None
    ]


def _entry(graph: ir.Graph) -> ir.Value | Mismatch:
    """The stream as it enters the first block: of the embedding's values the one read behind it."""
    read = (v for n in graph if block_of(n) is not None for v in n.inputs if v is not None)
    found = [v for v in dict.fromkeys(read) if _block(v.producer()) == "embedding"]
    if len(found) == 1:
        return found[0]
    why = f"the blocks read {len(found)} values of the embedding, not one stream"
    return Mismatch.over(found or list(graph.inputs), why)


def _block(node: ir.Node | None) -> str:
    return "" if node is None else node.metadata_props.get(BLOCK, "")


def read_elsewhere(graph: ir.Graph, span: Span) -> list[ir.Node]:
    """Nodes outside a block that read something of it besides the stream that leaves it: keys and
    values that blocks share, say."""
    own = [n for n in graph if block_of(n) == span.block]
    values = (v for n in own for v in n.outputs if v is not span.end)
    readers = (n for v in values for n in v.consumers())
    # a node without a block is an output's, as of a tap
    return [n for n in dict.fromkeys(readers) if _block(n) not in ("", str(span.block))]


def block_terms(span: Span) -> Terms | Mismatch:
    """What a block adds to the stream by its attention and by its MLP, one after the other or side
    by side. A Mismatch where its end is not its start plus terms of both."""
    sums, leaves = list[ir.Node](), list[ir.Value]()
    _gather(span.end, span, sums, leaves)
    terms = [v for v in leaves if v is not span.start]
    if len(terms) != len(leaves) - 1:
        why = f"block {span.block} does not end in a sum of the stream it reads and what it adds"
        return Mismatch.at(span.end, why)
    stops = {span.start, *(n.outputs[0] for n in sums)}
    attending = [v for v in terms if _attends(v, span.block, stops)]
    others = [v for v in terms if v not in attending]
    if not attending or not others:
        why = f"block {span.block} does not add attention and MLP apart"
        return Mismatch.over(terms, why)
    return Terms(tuple(sums), tuple(attending), tuple(others))


def without_mlp(span: Span, terms: Terms, emit: Emit) -> ir.Value:
    """The stream of a block without what its MLP adds: a value of the host where it has one, as
    where attention comes first, else made."""
    kept = {span.start, *terms.attention}
    for node in terms.sums:
        if _leaves(node.outputs[0], terms) == kept:
            return node.outputs[0]
    total = span.start
    for term in terms.attention:
        total = emit.op("Add", [total, term])
    total.shape, total.type = span.end.shape, span.end.type
    return total


def _leaves(value: ir.Value, terms: Terms) -> set[ir.Value]:
    node = value.producer()
    if node not in terms.sums:
        return {value}
    return {leaf for part in node.inputs if part is not None for leaf in _leaves(part, terms)}


def _gather(value: ir.Value, span: Span, sums: list[ir.Node], leaves: list[ir.Value]) -> None:
    """The sum that a value is, taken apart down to the stream; an added bias is no term."""
    node = value.producer()
    if (
        value is span.start
        or node is None
        or node.op_type != "Add"
        or block_of(node) != span.block
        or any(constant(v) is not None for v in node.inputs)
    ):
        leaves.append(value)
        return
    sums.append(node)
    for part in node.inputs:
        assert part is not None, "an Add has two operands"
        _gather(part, span, sums, leaves)


def _attends(value: ir.Value, block: int, stops: Iterable[ir.Value]) -> bool:
    """Whether a value is computed with the block's own attention, `stops` not looked behind."""
    seen, todo = set(stops), [value]
    while todo:
        one = todo.pop()
        node = one.producer()
        if one in seen or node is None or block_of(node) != block:
            continue
        seen.add(one)
        if node.metadata_props.get(ROLE) == "attention":
            return True
        todo.extend(v for v in node.inputs if v is not None)
    return False
