"""Anchors: blocks, attention, residual stream, final norm, head, embedding - found by structure.

The residual stream of any decoder is the chain of nodes that every path from the embedding to the
logits must pass: the dominators of the logits. Attention nodes lie between two links of that chain;
the links cut the graph into blocks. Found once, stamped in node metadata, read by every graft.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.facts import FACTS_KEY, read_facts, write_facts
from graftline.optional import require
from graftline.passes.pipeline.graft import BLOCK, ROLE, SHARED, Graft, Stage

if TYPE_CHECKING:
    from networkx import DiGraph

NORMS = frozenset({"RMSNormalization", "LayerNormalization"})
_NOT_DATA = frozenset({"Shape", "Size"})


LOW = ("bfloat16", "float16")
"""Types that a residual stream may have besides float32, the coarsest first."""


@dataclass(frozen=True)
class Anchors(Graft):
    """Stamps block numbers and roles on every node of a canonical decoder, and notes in its facts
    the type of its residual stream."""

    stage: ClassVar[Stage] = "front"

    def requires(self, model: ir.Model) -> None:
        if not any(n.op_type == "Attention" for n in model.graph):
            seen = Counter(n.op_type for n in model.graph).most_common(8)
            raise NotApplicable(
                "no attention found: this graph is not a decoder that graftline knows",
                [f"{count} {op}" for op, count in seen],
            )

    def apply(self, model: ir.Model) -> None:
        stamp_anchors(model)
        if FACTS_KEY in model.metadata_props:
            facts = read_facts(model)
            stream = {v.dtype.numpy().name for v in block_outputs(model.graph) if v.dtype}
            dtype = next((name for name in LOW if name in stream), facts.dtype)
            write_facts(model, replace(facts, dtype=dtype))


def stamp_anchors(model: ir.Model) -> None:
    """Find the anchors of a decoder with `Attention` nodes and stamp them. Raises NotApplicable."""
    graph = model.graph
    attention = [n for n in graph if n.op_type == "Attention"]
    embedding = _embedding(graph)
    logits = _logits(graph)
    order = {node: i for i, node in enumerate(graph)}
    stream, idom = _stream(graph, embedding, logits)
    starts = [_last_cut_before(node, stream, idom) for node in attention]
    if len(set(starts)) != len(starts):
        raise NotApplicable(
            "two attentions share one stretch of the residual stream",
            [n.name or "" for n in attention],
        )
    link = {node: i for i, node in enumerate(stream)}
    bounds = [link[s] for s in starts]
    bounds.append(_end_of_last(stream, bounds, graph))
    for node in graph:
        node.metadata_props.pop(BLOCK, None)
        node.metadata_props.pop(ROLE, None)
    _stamp_blocks(graph, stream, idom, link, bounds)
    _stamp_roles(attention, embedding, stream, bounds)
    _stamp_constants(graph, order)


def block_of(node: ir.Node) -> int | None:
    """The number of the block a node is stamped with, or None outside the blocks."""
    text = node.metadata_props.get(BLOCK, "")
    return int(text) if text.isdigit() else None


def with_role(graph: ir.Graph, role: str) -> list[ir.Node]:
    """All nodes stamped with a role, in graph order."""
    return [n for n in graph if n.metadata_props.get(ROLE) == role]


def block_outputs(graph: ir.Graph) -> list[ir.Value]:
    """The residual stream as it leaves each block, in order."""
    return [n.outputs[0] for n in with_role(graph, "residual")]


def _embedding(graph: ir.Graph) -> ir.Node:
    tokens = next((v for v in graph.inputs if v.name == "tokens"), None)
    readers = [n for n in tokens.consumers() if n.op_type == "Gather"] if tokens else []
    if not readers:
        raise NotApplicable(
            "no embedding found: no Gather reads the input 'tokens'",
            [v.name or "" for v in graph.inputs],
        )
    return readers[0]


def _logits(graph: ir.Graph) -> ir.Node:
    value = next((v for v in graph.outputs if v.name == "logits"), None)
    node = value.producer() if value is not None else None
    if node is None:
        raise NotApplicable("no output named 'logits'", [v.name or "" for v in graph.outputs])
    return node


def _stream(
    graph: ir.Graph, source: ir.Node, sink: ir.Node
) -> tuple[list[ir.Node], dict[ir.Node, ir.Node | None]]:
    """The chain of dominators from embedding to logits, and every node's immediate dominator."""
    nx = require("networkx")
    flow: DiGraph[ir.Node] = nx.DiGraph()
    flow.add_node(source)
    for node in graph:
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker in flow and node.op_type not in _NOT_DATA:
                flow.add_edge(maker, node)
    if sink not in flow:
        raise NotApplicable("the logits do not depend on the embedding", [sink.name or ""])
    idom: dict[ir.Node, ir.Node | None] = dict(nx.immediate_dominators(flow, source))
    idom[source] = None
    chain = [sink]
    while (above := idom[chain[-1]]) is not None:
        chain.append(above)
    return chain[::-1], idom


def _last_cut_before(
    node: ir.Node, stream: list[ir.Node], idom: dict[ir.Node, ir.Node | None]
) -> ir.Node:
    cuts = set(stream)
    at: ir.Node | None = idom.get(node)
    while at is not None and at not in cuts:
        at = idom[at]
    if at is None or node in cuts:
        raise NotApplicable("an attention lies outside the residual stream", [node.name or ""])
    return at


def _end_of_last(stream: list[ir.Node], bounds: list[int], graph: ir.Graph) -> int:
    """Link at which the last block ends: blocks have equal numbers of links; one block ends at its
    norm."""
    if any(b <= a for a, b in pairwise(bounds)):
        raise NotApplicable("the attentions do not follow one another along the residual stream")
    if len(bounds) > 1:
        step = Counter(b - a for a, b in pairwise(bounds)).most_common(1)[0][0]
        return min(bounds[-1] + step, len(stream) - 1)
    head = _head_link(stream)
    end = head - 1
    while end > bounds[0] + 1 and stream[end].op_type in NORMS:
        end -= 1
    return end


def _head_link(stream: list[ir.Node]) -> int:
    for i in range(len(stream) - 1, 0, -1):
        if stream[i].op_type in ("MatMul", "Gemm"):
            return i
    raise NotApplicable("no lm_head found: no MatMul or Gemm between the last block and the logits")


def _stamp_blocks(
    graph: ir.Graph,
    stream: list[ir.Node],
    idom: dict[ir.Node, ir.Node | None],
    link: dict[ir.Node, int],
    bounds: list[int],
) -> None:
    names = ["embedding"] * (bounds[0] + 1)
    for block, (start, end) in enumerate(pairwise(bounds)):
        names += [str(block)] * (end - start)
    names += ["head"] * (len(stream) - len(names))
    segment: dict[ir.Node, int] = {}
    for node in graph:
        if node in link:
            segment[node] = link[node]
            node.metadata_props[BLOCK] = names[link[node]]
        elif (above := idom.get(node)) is not None:
            segment[node] = segment[above] + 1 if above in link else segment[above]
            if segment[node] < len(names):
                node.metadata_props[BLOCK] = names[segment[node]]


def _stamp_roles(
    attention: Iterable[ir.Node], embedding: ir.Node, stream: list[ir.Node], bounds: list[int]
) -> None:
    embedding.metadata_props[ROLE] = "embedding"
    for node in attention:
        node.metadata_props[ROLE] = "attention"
    for end in bounds[1:]:
        stream[end].metadata_props[ROLE] = "residual"
    head = _head_link(stream)
    stream[head].metadata_props[ROLE] = "lm_head"
    for node in stream[bounds[-1] + 1 : head]:
        if node.op_type in NORMS:
            node.metadata_props[ROLE] = "final_norm"


def _stamp_constants(graph: ir.Graph, order: dict[ir.Node, int]) -> None:
    """Nodes off the stream (weight transposes, tables) belong to their readers' block, or are
    shared."""
    for node in sorted(order, key=order.__getitem__, reverse=True):
        if BLOCK in node.metadata_props:
            continue
        blocks = {
            reader.metadata_props.get(BLOCK, SHARED)
            for value in node.outputs
            for reader in value.consumers()
        }
        node.metadata_props[BLOCK] = blocks.pop() if len(blocks) == 1 else SHARED
