"""Anchors: blocks, attention, residual stream, final norm, head, embedding - found by structure.

The residual stream of any decoder is the chain of nodes that every path from the embedding to the
logits must pass: the dominators of the logits. Attention nodes lie between two links of that chain;
the links cut the graph into blocks. Found once, stamped in node metadata, read by every graft.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.facts import FACTS_KEY, read_facts, write_facts
from graftline.optional import require
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.ports import input_of, output_of
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


@dataclass(frozen=True)
class Blocks:
    """The anchors of a decoder: its attentions, the links of its residual stream from the embedding
    to the logits, and the links at which blocks begin, the last one's end behind them."""

    attention: list[ir.Node]
    embedding: ir.Node
    stream: list[ir.Node]
    idom: dict[ir.Node, ir.Node | None]
    """Every node's immediate dominator."""
    bounds: list[int]


def stamp_anchors(model: ir.Model) -> None:
    """Find the anchors of a decoder with `Attention` nodes and stamp them. Raises NotApplicable."""
    graph = model.graph
    found = find_blocks(model)
    if isinstance(found, Mismatch):
        raise refusal("no blocks found", [found])
    for node in graph:
        node.metadata_props.pop(BLOCK, None)
        node.metadata_props.pop(ROLE, None)
    _stamp_blocks(graph, found)
    _stamp_roles(found)
    _stamp_constants(graph)


def find_blocks(model: ir.Model) -> Blocks | Mismatch:
    """The residual stream and the blocks along it."""
    graph = model.graph
    attention = [n for n in graph if n.op_type == "Attention"]
    embedding, logits = _embedding(model), _logits(model)
    if isinstance(embedding, Mismatch):
        return embedding
    if isinstance(logits, Mismatch):
        return logits
    found = _stream(graph, embedding, logits)
    if isinstance(found, Mismatch):
        return found
    stream, idom = found
    starts = [_last_cut_before(node, stream, idom) for node in attention]
    if outside := [s for s in starts if isinstance(s, Mismatch)]:
        return outside[0]
    cuts = [s for s in starts if isinstance(s, ir.Node)]
    if len(set(cuts)) != len(cuts):
        shared = [n for n, cut in zip(attention, cuts, strict=True) if cuts.count(cut) > 1]
        return Mismatch.over(shared, "two attentions share one stretch of the residual stream")
    link = {node: i for i, node in enumerate(stream)}
    bounds = [link[s] for s in cuts]
    back = [n for n, (a, b) in zip(attention[1:], pairwise(bounds), strict=True) if b <= a]
    if back:
        why = "the attentions do not follow one another along the residual stream"
        return Mismatch.over(back, why)
    if _head_link(stream) is None:
        why = "no lm_head found: no MatMul or Gemm between the last block and the logits"
        return Mismatch.at(logits, why)
    return Blocks(attention, embedding, stream, idom, [*bounds, _end_of_last(stream, bounds)])


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


def _embedding(model: ir.Model) -> ir.Node | Mismatch:
    tokens = input_of(model, "tokens")
    readers = [n for n in tokens.consumers() if n.op_type == "Gather"] if tokens else []
    if readers:
        return readers[0]
    why = "no embedding found: no Gather reads the input 'tokens'"
    return Mismatch.over(tokens.consumers() if tokens else list(model.graph.inputs), why)


def _logits(model: ir.Model) -> ir.Node | Mismatch:
    value = output_of(model, "logits")
    node = value.producer() if value is not None else None
    return node or Mismatch.over(list(model.graph.outputs), "no output has the role 'logits'")


def _stream(
    graph: ir.Graph, source: ir.Node, sink: ir.Node
) -> tuple[list[ir.Node], dict[ir.Node, ir.Node | None]] | Mismatch:
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
        return Mismatch.at(sink, "the logits do not depend on the embedding")
    idom: dict[ir.Node, ir.Node | None] = dict(nx.immediate_dominators(flow, source))
    idom[source] = None
    chain = [sink]
    while (above := idom[chain[-1]]) is not None:
        chain.append(above)
    return chain[::-1], idom


def _last_cut_before(
    node: ir.Node, stream: list[ir.Node], idom: dict[ir.Node, ir.Node | None]
) -> ir.Node | Mismatch:
    """The last link that every way to a node passes."""
    cuts = set(stream)
    at: ir.Node | None = idom.get(node)
    while at is not None and at not in cuts:
        at = idom[at]
    if at is None or node in cuts:
        return Mismatch.at(node, "an attention lies outside the residual stream")
    return at


def _end_of_last(stream: list[ir.Node], bounds: list[int]) -> int:
    """Link at which the last block ends: blocks have equal numbers of links; one block ends at its
    norm."""
    if len(bounds) > 1:
        step = Counter(b - a for a, b in pairwise(bounds)).most_common(1)[0][0]
        return min(bounds[-1] + step, len(stream) - 1)
    end = (_head_link(stream) or len(stream)) - 1
    while end > bounds[0] + 1 and stream[end].op_type in NORMS:
        end -= 1
    return end


def _head_link(stream: list[ir.Node]) -> int | None:
    """The last product along the stream."""
    products = [i for i, node in enumerate(stream) if node.op_type in ("MatMul", "Gemm")]
    return products[-1] if products and products[-1] else None


def _stamp_blocks(graph: ir.Graph, found: Blocks) -> None:
    stream, idom, bounds = found.stream, found.idom, found.bounds
    link = {node: i for i, node in enumerate(stream)}
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


def _stamp_roles(found: Blocks) -> None:
    stream, bounds, head = found.stream, found.bounds, _head_link(found.stream)
    assert head is not None
    found.embedding.metadata_props[ROLE] = "embedding"
    for node in found.attention:
        node.metadata_props[ROLE] = "attention"
    for end in bounds[1:]:
        stream[end].metadata_props[ROLE] = "residual"
    stream[head].metadata_props[ROLE] = "lm_head"
    for node in stream[bounds[-1] + 1 : head]:
        if node.op_type in NORMS:
            node.metadata_props[ROLE] = "final_norm"


def _stamp_constants(graph: ir.Graph) -> None:
    """Nodes off the stream (weight transposes, tables) belong to their readers' block, or are
    shared."""
    for node in reversed(list(graph)):
        if BLOCK in node.metadata_props:
            continue
        blocks = {
            reader.metadata_props.get(BLOCK, SHARED)
            for value in node.outputs
            for reader in value.consumers()
        }
        node.metadata_props[BLOCK] = blocks.pop() if len(blocks) == 1 else SHARED
