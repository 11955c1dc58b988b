"""cut-depth: a smaller model inside a larger one - its first blocks, its final norm, its head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import decoder_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_of, block_outputs
from graftline.passes.graph.cut import drop_ports, elements, hand_over, keep_outputs
from graftline.passes.graph.emit import new_input, new_output
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import BLOCK, Evaluate, Graft, Law
from graftline.ports import read_ports

STREAM = "stream"
"""The residual stream where a law takes a host apart."""


def prefix(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The cut graph gives what the host's own final norm and head make of its residual stream after
    the last block that is kept, and the caches and taps of those blocks as they were."""
    assert isinstance(graft, CutDepth)
    expected = prefix_outputs(before, graft.blocks, feed, evaluate)
    got = evaluate(after, graft.neutral(feed, after))
    ports = read_ports(after)
    comparison = Comparison(graft.name(), "prefix", activation_dtype(after))
    got, expected = (written_slots(side, ports, feed) for side in (got, expected))
    worst = comparison.outputs(got, expected, ports)
    what = f"{len(expected)} outputs equal the host's stream after block {graft.blocks - 1} through"
    return Evidence(f"{what} its final norm and head", worst, comparison.limit)


def prefix_outputs(host: ir.Model, blocks: int, feed: Feed, evaluate: Evaluate) -> Feed:
    """What a host would answer if it ended after its first `blocks` blocks, computed without
    rewiring it: its residual stream is read there, then given to its final norm and head."""
    lower, upper = host.clone(), host.clone()
    stream = block_outputs(lower.graph)[blocks - 1]
    layers = {p.name: p.layer for p in read_ports(host) if p.direction == "out"}
    kept = [name for name, layer in layers.items() if layer is not None and layer < blocks]
    dtype, shape = stream.dtype or ir.DataType.FLOAT, ["B", "N", decoder_facts(host).hidden]
    new_output(lower.graph, stream, STREAM, dtype, shape)
    keep_outputs(lower, [*kept, STREAM])
    found = evaluate(lower, feed)
    given = new_input(upper.graph, STREAM, dtype, shape)
    hand_over(block_outputs(upper.graph)[-1], given)
    keep_outputs(upper, [name for name, layer in layers.items() if layer is None])
    return evaluate(upper, {**feed, STREAM: found.pop(STREAM)}) | found


@dataclass(frozen=True)
class CutDepth(Graft):
    """Keeps the embedding, the first `blocks` blocks, the final norm and the head: a draft for the
    model it is cut from, of the same weights (sorted sub-models, arXiv 2407.01955).

    The caches and taps of the other blocks go, and the weights nobody reads any more. Answers
    other logits than the host by design; its own law says which.
    """

    laws: ClassVar[tuple[Law, ...]] = (prefix,)
    numeric: ClassVar[bool] = False

    blocks: int = 0

    def requires(self, model: ir.Model) -> None:
        stream = block_outputs(model.graph)
        if not stream:
            raise NotApplicable("cut-depth needs stamped blocks; run anchors first")
        ends = [f"block {i} ends at {value.name}" for i, value in enumerate(stream)]
        if not 1 <= self.blocks < len(stream):
            span = f"1 to {len(stream) - 1}" if len(stream) > 1 else "none fewer"
            raise NotApplicable(
                f"cut-depth{{blocks={self.blocks}}}: of this host's {len(stream)} blocks {span} "
                "can be kept",
                ends,
            )
        at, last = (stream[i].shape for i in (self.blocks - 1, -1))
        if at is not None and last is not None and at[-1] != last[-1]:
            raise NotApplicable(
                f"cut-depth{{blocks={self.blocks}}}: the stream leaves block {self.blocks - 1} "
                f"{at[-1]} wide and the head reads {last[-1]}; cut behind a block of that width",
                ends,
            )
        beside = _beside(model.graph, stream[-1])
        if beside:
            raise NotApplicable(
                "cut-depth needs a single residual stream; the head reads a block beside it",
                [f"{node.op_type} {node.name or node.outputs[0].name}" for node in beside],
            )

    def apply(self, model: ir.Model) -> None:
        graph, gone = model.graph, self.dropped(model)
        facts, size = decoder_facts(model), elements(model)
        stream = block_outputs(graph)
        hand_over(stream[-1], stream[self.blocks - 1])
        drop_ports(model, gone)
        left = max(facts.parameters - (size - elements(model)), 0)
        write_facts(model, replace(facts, layers=self.blocks, parameters=left))

    def dropped(self, before: ir.Model) -> frozenset[str]:
        ports = read_ports(before)
        return frozenset(p.name for p in ports if p.layer is not None and p.layer >= self.blocks)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        left = {value.name for value in after.graph.inputs}
        return {name: array for name, array in feed.items() if name in left}

    def within(self, blocks: int) -> CutDepth:
        return replace(self, blocks=min(self.blocks, blocks - 1))


def _beside(graph: ir.Graph, stream: ir.Value) -> list[ir.Node]:
    """Nodes of the head that read what a block makes, other than the stream it leaves."""

    def of_a_block(value: ir.Value | None) -> bool:
        maker = value.producer() if value is not None else None
        return value is not stream and maker is not None and block_of(maker) is not None

    head = [n for n in graph if n.metadata_props.get(BLOCK) == "head"]
    return [n for n in head if any(of_a_block(v) for v in n.inputs)]
