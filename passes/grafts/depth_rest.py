"""depth-rest: a model without its first blocks, from the hidden states that those leave off with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_of, block_outputs, with_role
from graftline.passes.grafts.cut_depth import CutDepth
from graftline.passes.graph.cut import drop_ports, elements, hand_over, sizes_of_caches
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.ports import input_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import BLOCK, Evaluate, Graft, Law
from graftline.ports import ROUTERS, STREAM, Port, by_role, read_ports, write_ports

LOWER = "stream.lower"
"""The output of the first blocks where a law takes a host apart."""


def joined(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The host cut after its first blocks, and then this graph on the hidden states that leave
    them, give what the host gives: its logits, and each of its caches once."""
    assert isinstance(graft, DepthRest)
    ports = read_ports(before)
    blocks = graft.first(before)
    first, stream = first_blocks(before, blocks, feed, evaluate)
    given = by_role(read_ports(after), STREAM, "in")[0]
    found = evaluate(after, {**graft.neutral(feed, after), given.name: stream})
    expected = evaluate(before, feed)
    caches = {p.name for p in ports if p.state and p.direction == "out"}
    comparison = Comparison(graft.name(), "joined", activation_dtype(after))
    if twice := sorted(caches & first.keys() & found.keys()):
        raise comparison.broken(twice[0], "is written by both parts")
    kept = {p.name for p in ports if p.direction == "out" and not p.state} & found.keys()
    both = {k: v for k, v in first.items() if k in caches} | found
    wanted = {k: v for k, v in expected.items() if k in caches | kept}
    both, wanted = (written_slots(side, ports, feed) for side in (both, wanted))
    worst = comparison.outputs(both, wanted, ports)
    what = f"{len(wanted)} outputs of {blocks} blocks and then the rest are the host's"
    return Evidence(what, worst, comparison.limit)


def first_blocks(
    host: ir.Model, blocks: int, feed: Feed, evaluate: Evaluate
) -> tuple[Feed, Array]:
    """What a host cut after its first `blocks` blocks answers, and the hidden states that leave
    them."""
    lower = host.clone()
    stream = block_outputs(lower.graph)[blocks - 1]
    dtype, width = stream.dtype or ir.DataType.FLOAT, decoder_facts(host).hidden
    new_output(lower.graph, stream, LOWER, dtype, ["B", "N", width])
    CutDepth(blocks).apply(lower)
    found = evaluate(lower, feed)
    return found, found.pop(LOWER)


@dataclass(frozen=True)
class DepthRest(Graft):
    """Keeps all but the first `blocks` blocks (0: no block at all), and starts from the hidden
    states that leave those: the port stream.{layer} [B, N, H] in place of the tokens. With
    cut-depth of as many blocks it is the whole model, taken apart, so that drafts of the first
    blocks are verified without computing those again (LayerSkip, arXiv 2404.16710).

    The blocks keep the numbers, caches and taps that they have in the host; the weights nobody
    reads any more go. Neutral: nothing; any hidden states stand for the port, and the graft's own
    law feeds the host's.
    """

    laws: ClassVar[tuple[Law, ...]] = (joined,)
    numeric: ClassVar[bool] = False

    blocks: int = 0

    def first(self, model: ir.Model) -> int:
        """How many of that host's blocks it leaves out."""
        return self.blocks or len(block_outputs(model.graph))

    def requires(self, model: ir.Model) -> None:
        if self.blocks or not block_outputs(model.graph):
            CutDepth(self.blocks).requires(model)
        blocks = self.first(model)
        found = [block_of(node) for node in with_role(model.graph, "residual")]
        if found != list(range(len(found))):
            raise NotApplicable(f"{self}: this graph leaves out blocks already; cut the whole host")
        if others := list(_reaching(model, blocks, self.dropped(model))):
            why = f"what follows block {blocks - 1} reads more of it than hidden states"
            raise refusal(f"{self} cannot start there", [Mismatch.over(others, why)])
        self._counting(model)

    def apply(self, model: ir.Model) -> None:
        graph, gone = model.graph, self.dropped(model)
        facts, size = decoder_facts(model), elements(model)
        blocks = self.first(model)
        stream = block_outputs(graph)[blocks - 1]
        layer, dtype = blocks - 1, stream.dtype or ir.DataType.FLOAT
        shape = ("B", "N", facts.hidden)
        given = new_input(graph, f"{STREAM}.{layer}", dtype, shape)
        for node in list(_shapes(model)):
            _measure(node, given)
        for node, cache in self._counting(model):
            node.replace_input_with(0, cache)
        # in the place of the embedding, so that the first block left is as all others
        entry = Emit(graph, self.name(), graph[0], block="embedding").op("Identity", [given])
        hand_over(stream, entry)
        drop_ports(model, gone)
        port = Port(given.name or "", STREAM, "in", dtype.numpy().name, shape, layer, "prenorm")
        write_ports(model, [*read_ports(model), port])
        left = max(facts.parameters - (size - elements(model)), 0)
        write_facts(model, replace(facts, layers=facts.layers - blocks, parameters=left))

    def _counting(self, model: ir.Model) -> list[tuple[ir.Node, ir.Value]]:
        """Nodes that count slots by a cache that goes, with one that stays; without blocks nothing
        asks."""
        return sizes_of_caches(model, self.dropped(model), self.name()) if self.blocks else []

    def dropped(self, before: ir.Model) -> frozenset[str]:
        blocks = self.first(before)
        first = (p for p in read_ports(before) if p.layer is not None and p.layer < blocks)
        tokens = by_role(read_ports(before), "tokens", "in")
        routers = by_role(read_ports(before), ROUTERS)  # of blocks that it leaves out, too
        return frozenset(p.name for p in (*first, *tokens, *routers))

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        left = {value.name for value in after.graph.inputs}
        port = by_role(read_ports(after), STREAM, "in")[0]
        rows = feed[roles_of(after).inputs["positions"]].shape
        states = np.random.default_rng(7).standard_normal((*rows, int(port.shape[-1])))
        fed = {name: array for name, array in feed.items() if name in left}
        return {**fed, port.name: states.astype(port.dtype)}

    def within(self, blocks: int) -> DepthRest:
        return replace(self, blocks=min(self.blocks, blocks - 1))


def _reaching(model: ir.Model, blocks: int, gone: Collection[str]) -> Iterator[ir.Node]:
    """Nodes of the first blocks, or on the tokens, that the rest, without the ports that are
    `gone`, needs besides the stream."""
    stream, tokens = block_outputs(model.graph)[blocks - 1], input_of(model, "tokens")
    todo = [value for value in model.graph.outputs if value.name not in gone]
    seen: set[ir.Value] = {stream}
    while todo:
        value = todo.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        seen.add(value)
        number = block_of(node)
        own = number is not None and number < blocks
        reads = tokens in node.inputs and node.op_type != "Shape"
        if own or reads or node.metadata_props.get(BLOCK) == "embedding":
            yield node
            continue
        todo.extend(v for v in node.inputs if v is not None)


def _shapes(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes that ask the tokens for their shape, which the hidden states have too."""
    tokens = input_of(model, "tokens")
    users = tokens.consumers() if tokens is not None else ()
    return (node for node in users if node.op_type == "Shape")


def _measure(node: ir.Node, given: ir.Value) -> None:
    """Ask `given` [B, N, H] for what a Shape node asks of tokens [B, N]."""
    start, stop, _ = slice(
        node.attributes.get_int("start", 0), node.attributes.get_int("end", 2)
    ).indices(2)
    node.attributes["start"] = ir.AttrInt64("start", start)
    node.attributes["end"] = ir.AttrInt64("end", stop)
    node.replace_input_with(0, given)
