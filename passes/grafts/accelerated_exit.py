"""accelerated-exit: the first blocks of a host draft by a stream that runs ahead of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.anchors.residual import spans
from graftline.passes.grafts.accelerators import FLOAT, STATE, Accelerators, neutralise
from graftline.passes.grafts.adapter_cache import count_weights
from graftline.passes.grafts.placeholders import same_bits
from graftline.passes.graph.cut import elements, keep_outputs
from graftline.passes.graph.emit import Emit, drop_unused, new_input, new_output
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import BLOCK, Evaluate, Graft, Law
from graftline.ports import read_ports

BLOCK_NAME = "accelerators"
"""The block that its nodes are stamped with: none of the host's."""
_TAPPED, _GIVEN = "accelerator.stream.{}", "accelerator.given"


def accelerated(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The host's final norm and lm_head score what the accelerators alone make of the host's
    streams; taps and caches are as they were."""
    assert isinstance(graft, AcceleratedExit)
    blocks, alone = len(block_outputs(before.graph)), Accelerators.of(after, graft.name()).model
    expected = accelerated_outputs(before, blocks, alone, feed, evaluate)
    got, ports = evaluate(after, graft.neutral(feed, after)), read_ports(before)
    got, expected = (written_slots(side, ports, feed) for side in (got, expected))
    comparison = Comparison(graft.name(), "accelerated", activation_dtype(after))
    worst = comparison.outputs(got, expected, ports)
    what = f"{len(expected)} outputs are the host's, its head on the accelerators' stream"
    return Evidence(f"{what} of {blocks} blocks", worst, comparison.limit)


def plain_exit(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """With accelerators that add nothing, s = 1 and B = 0, every output is the host's to the bit:
    the exit is that of early exit."""
    plain = after.clone()
    if not (count := neutralise(plain)):
        raise LawBroken(graft.name(), "plain-exit", "the graph", "holds no accelerator")
    got, expected = evaluate(plain, graft.neutral(feed, after)), evaluate(before, feed)
    same_bits(graft, "plain-exit", got, expected, "under accelerators that add nothing")
    return Evidence(f"{len(expected)} outputs are the host's to the bit, {count} weights neutral")


def accelerated_outputs(
    host: ir.Model, blocks: int, accelerators: ir.Model, feed: Feed, evaluate: Evaluate
) -> Feed:
    """What a host would answer if its final norm and head read the accelerators' stream of its
    first `blocks` blocks, computed without rewiring it."""
    streams = _streams(host, blocks, feed, evaluate)
    unread = np.zeros_like(streams[0])
    given = {
        value.name or "": streams[number] if number < len(streams) else unread
        for number, value in enumerate(accelerators.graph.inputs)
    }
    state = evaluate(accelerators, given)[STATE.format(blocks)]
    upper = host.clone()
    stream = block_outputs(upper.graph)[-1]
    dtype, width = stream.dtype or FLOAT, decoder_facts(host).hidden
    read = new_input(upper.graph, _GIVEN, dtype, ["B", "N", width])
    for user, place in _head_reads(stream):
        user.replace_input_with(place, read)
    return evaluate(upper, {**feed, _GIVEN: state.astype(dtype.numpy())})


def _streams(host: ir.Model, blocks: int, feed: Feed, evaluate: Evaluate) -> list[Array]:
    """In fp32 [B, N, H] each: what enters a host's first block, and what leaves the first `blocks`
    ones."""
    lower, names = host.clone(), list[str]()
    for number, value in enumerate(_values(lower.graph)[: blocks + 1]):
        tap = Emit(lower.graph, _GIVEN).op("Identity", [value])
        names.append(_TAPPED.format(number))
        shape = ["B", "N", decoder_facts(host).hidden]
        new_output(lower.graph, tap, names[-1], value.dtype or FLOAT, shape)
    keep_outputs(lower, names)
    found = evaluate(lower, feed)
    return [found[name].astype(np.float32) for name in names]


def _values(graph: ir.Graph) -> list[ir.Value]:
    """The residual stream as it enters the first block, and as it leaves each. Raises
    NotApplicable where blocks do not follow one another on one stream."""
    found = spans(graph)
    if isinstance(found, Mismatch):
        raise refusal("accelerated-exit finds no stream beside which another could run", [found])
    return [found[0].start, *(span.end for span in found)] if found else []


def _head_reads(stream: ir.Value) -> list[tuple[ir.Node, int]]:
    """Where the final norm and the head read a stream, and not a tap of it, in graph order."""
    graph = stream.graph
    assert graph is not None, "a block gives it"
    uses = [use for use in stream.uses() if use.node.metadata_props.get(BLOCK) == "head"]
    return [(use.node, use.idx) for use in sorted(uses, key=lambda use: graph.index(use.node))]


def _check_widths(values: Sequence[ir.Value], hidden: int) -> None:
    """Raise NotApplicable where a stream has another width than the host's hidden states."""
    for number, value in enumerate(values):
        width = None if value.shape is None else value.shape[-1]
        if isinstance(width, int) and width != hidden:
            place = f"leaves block {number - 1}" if number else "enters block 0"
            raise NotApplicable(
                f"accelerated-exit: the stream {place} {width} wide, and the host's hidden states "
                f"are {hidden} wide"
            )


def _wide(emit: Emit, value: ir.Value) -> ir.Value:
    """A stream in fp32."""
    return value if value.dtype in (None, FLOAT) else emit.op("Cast", [value], to=FLOAT)


@dataclass(frozen=True)
class AcceleratedExit(Graft):
    """Lets the final norm and the head read a stream that runs beside the residual stream and ahead
    of it, by trained accelerators of the blocks: behind cut-depth, a draft for the model it is cut
    from (after M2R2, arXiv 2502.02040; the formulas are in `accelerators.py`).

    What leaves the blocks, and a tap of it, is as before: the blocks behind the exit go on from
    there. Answers other logits than the host by design; its own laws say which. Adds no input.

    `blocks`: of accelerators for more than a host's so many blocks, those of the first; 0: the host
    has as many as there are accelerators.
    """

    laws: ClassVar[tuple[Law, ...]] = (accelerated, plain_exit)
    numeric: ClassVar[bool] = False

    blocks: int = 0

    def requires(self, model: ir.Model) -> None:
        accelerators = Accelerators.of(model, self.name())
        width, hidden = accelerators.width, decoder_facts(model).hidden
        count, own = len(block_outputs(model.graph)), accelerators.note.blocks
        if not count:
            raise NotApplicable("accelerated-exit needs stamped blocks; run anchors first")
        if width != hidden:
            raise NotApplicable(
                f"accelerated-exit: the accelerators read {width} numbers, and the host's hidden "
                f"states have {hidden}: they are another model's"
            )
        if count != own and not self.blocks:
            raise NotApplicable(
                f"accelerated-exit: accelerators of {own} blocks, and this graph has {count}; put "
                f"cut-depth{{blocks={own}}} before it"
            )
        _check_widths(_values(model.graph), hidden)

    def apply(self, model: ir.Model) -> None:
        graph, size = model.graph, elements(model)
        values = _values(graph)
        reads = _head_reads(values[-1])
        emit = Emit(graph, self.name(), reads[0][0], BLOCK_NAME)
        streams = [_wide(emit, value) for value in values]
        state = Accelerators.of(model, self.name()).states(emit, streams)[-1]
        dtype = values[-1].dtype
        state = emit.op("Cast", [state], to=dtype) if dtype not in (None, FLOAT) else state
        state.shape, state.type = values[-1].shape, values[-1].type
        for user, place in reads:
            user.replace_input_with(place, state)
        drop_unused(model)
        count_weights(model, size)

    def within(self, blocks: int) -> AcceleratedExit:
        return replace(self, blocks=blocks)
