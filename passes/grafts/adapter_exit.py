"""adapter-exit: the first blocks of a host draft through an adapter of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import decoder_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts.adapter import FLOAT, HIDDEN, POSITIONS, STATE, Adapter
from graftline.passes.grafts.adapter_cache import (
    BLOCK_NAME,
    check_adapter,
    count_weights,
    empty_adapter,
    stream_of,
    write_rows,
)
from graftline.passes.grafts.kv_cache import carried_caches, some_rows
from graftline.passes.grafts.masks import SlotMasks
from graftline.passes.graph.cut import elements
from graftline.passes.graph.emit import Emit, drop_unused, new_input
from graftline.passes.graph.ports import input_of, port_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import ROLE, Evaluate, Graft, Law
from graftline.ports import read_ports

_GIVEN = "adapter.given"


def adapted(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The host's lm_head scores what the adapter alone makes of the host's stream, in one step and
    in two, the caches carried over; taps and the host's caches are as they were."""
    count, made = decoder_facts(before).layers, roles_of(after)
    alone = Adapter.of(after, graft.name()).model
    expected = adapted_outputs(before, count, alone, feed, evaluate)
    got, ports = evaluate(after, graft.neutral(feed, after)), read_ports(before)
    got, expected = (written_slots(side, ports, feed) for side in (got, expected))
    comparison = Comparison(graft.name(), "adapted", activation_dtype(after))
    worst = comparison.outputs(got, expected, ports)
    logits = made.outputs["logits"]
    rows = feed[made.inputs["tokens"]].shape[1]
    cut = max(1, rows // 2)
    half = evaluate(after, graft.neutral(some_rows(made, feed, slice(0, cut)), after))
    second = some_rows(made, feed, slice(cut, rows)) | carried_caches(after, half)
    rest = evaluate(after, second)[logits]
    worst = max(worst, comparison.output(logits, rest, expected[logits][:, cut:]))
    what = f"{rows} rows, and {cut} before {rows - cut}, are the host's lm_head on the adapter's"
    return Evidence(what, worst, comparison.limit)


def adapted_outputs(
    host: ir.Model, blocks: int, adapter: ir.Model, feed: Feed, evaluate: Evaluate
) -> Feed:
    """What a host would answer if its lm_head scored an adapter's states of what leaves its first
    `blocks` blocks, computed without rewiring it; the sequences begin with the feed."""
    stream = stream_of(host, blocks, feed, evaluate)
    positions = feed[roles_of(host).inputs["positions"]]
    state = evaluate(adapter, {HIDDEN: stream, POSITIONS: positions})[STATE]
    upper = host.clone()
    node, place = _entry(upper.graph)
    dtype = _dtype(node.inputs[place])
    given = new_input(upper.graph, _GIVEN, dtype, ["B", "N", decoder_facts(host).hidden])
    node.replace_input_with(place, given)
    return evaluate(upper, {**feed, _GIVEN: state.astype(dtype.numpy())})


@dataclass(frozen=True)
class AdapterExit(Graft):
    """Puts an adapter with a cache of its own between the last block and the lm_head, in place of
    the host's final norm: behind cut-depth, a draft for the model it is cut from (Kangaroo, arXiv
    2404.18911).

    What leaves the blocks, and a tap of it, is as before: the blocks behind the exit go on from
    there, and not from what the adapter makes of it. Answers other logits than the host by design;
    its own law says which. Neutral: an empty cache.
    """

    laws: ClassVar[tuple[Law, ...]] = (adapted,)
    numeric: ClassVar[bool] = False

    def requires(self, model: ir.Model) -> None:
        check_adapter(self.name(), model)
        if (mask := port_of(model, "mask")) is not None:
            raise NotApplicable("adapter-exit drafts chains; leave tree-mask out", [mask.name])
        if len(with_role(model.graph, "lm_head")) != 1:
            raise NotApplicable("adapter-exit needs the stamped lm_head; run anchors first")

    def apply(self, model: ir.Model) -> None:
        graph, stream = model.graph, block_outputs(model.graph)[-1]
        node, place = _entry(graph)
        entered, size = node.inputs[place], elements(model)
        emit = Emit(graph, self.name(), node, BLOCK_NAME)
        tokens, positions, index = (
            input_of(model, role) for role in ("tokens", "positions", "write_index")
        )
        assert tokens is not None
        assert positions is not None
        assert index is not None
        adapter, last = Adapter.of(model, self.name()), decoder_facts(model).layers - 1
        x, rows, slots = write_rows(model, emit, adapter, stream, last)
        (cache, keys), (_, values) = slots
        mask = SlotMasks(emit, tokens, positions, index, cache).visible()
        state, attention = adapter.state(emit, x, rows, positions, (keys, values, mask))
        attention.metadata_props[ROLE] = "attention"
        dtype = _dtype(entered)
        state = emit.op("Cast", [state], to=dtype) if dtype != FLOAT else state
        node.replace_input_with(place, state)
        drop_unused(model)
        count_weights(model, size)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return feed | empty_adapter(feed, after)


def _entry(graph: ir.Graph) -> tuple[ir.Node, int]:
    """The node that takes hidden states [B, N, H] to the lm_head, and which input they are:
    select-rows stands before it, where there is one."""
    (head,) = with_role(graph, "lm_head")
    maker = head.inputs[0].producer() if head.inputs[0] is not None else None
    return (maker, 0) if maker is not None and maker.op_type == "GatherND" else (head, 0)


def _dtype(value: ir.Value | None) -> ir.DataType:
    return (value.dtype if value is not None else None) or FLOAT
