"""adapter-cache: the target's step fills the cache of the adapter behind one of its blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import decoder_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.adapter import FLOAT, HIDDEN, KEY, POSITIONS, VALUE, Adapter, Rows
from graftline.passes.grafts.kv_cache import POISON, both_ways, cache_port, scattered
from graftline.passes.graph.cut import elements
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.ports import input_of, port_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import Port, read_ports, slot_ports, write_ports

BLOCK_NAME = "adapter"
"""The block that an adapter's nodes are stamped with: none of the host's."""
PARTS = (KEY, VALUE)
_STREAM = "adapter.stream"


def adapter_rows(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The keys and values that a step writes are those that the adapter alone makes of what leaves
    the block."""
    assert isinstance(graft, AdapterCache)
    stream, made = stream_of(before, graft.blocks, feed, evaluate), roles_of(after)
    positions = feed[made.inputs["positions"]]
    alone = Adapter.of(after, graft.name()).model
    expected = evaluate(alone, {HIDDEN: stream, POSITIONS: positions})
    fed = graft.neutral(feed, after)
    got = evaluate(after, fed)
    slots = fed[made.inputs["write_index"]][:, None] + np.arange(positions.shape[1])
    comparison, worst = Comparison(graft.name(), "adapter-rows", activation_dtype(after)), 0.0
    for part in PARTS:
        port = port_of(after, f"adapter.{part}", "out")
        assert port is not None, "the graft adds it"
        rows = np.take_along_axis(got[port.name], slots[:, None, :, None], axis=2)
        worst = max(worst, comparison.output(port.name, rows, expected[part]))
    what = f"keys and values of {positions.size} rows are the adapter's of block {graft.blocks - 1}"
    return Evidence(what, worst, comparison.limit)


def stream_of(host: ir.Model, blocks: int, feed: Feed, evaluate: Evaluate) -> np.ndarray:
    """[B, N, H] in fp32: what leaves a host's first `blocks` blocks."""
    lower = host.clone()
    source = block_outputs(lower.graph)[blocks - 1]
    tap = Emit(lower.graph, _STREAM).op("Identity", [source])
    shape = ["B", "N", decoder_facts(host).hidden]
    new_output(lower.graph, tap, _STREAM, source.dtype or FLOAT, shape)
    return evaluate(lower, feed)[_STREAM].astype(np.float32)


@dataclass(frozen=True)
class AdapterCache(Graft):
    """Adds the cache of an adapter behind the first `blocks` blocks, adapter.key and adapter.value
    [B, K, S, D], which every step fills for all its rows: the adapter then drafts behind whatever
    the target has read, the prompt included (Kangaroo, arXiv 2404.18911).

    Nothing attends to it here. Neutral: an empty cache.
    """

    laws: ClassVar[tuple[Law, ...]] = (adapter_rows,)

    blocks: int = 0

    def requires(self, model: ir.Model) -> None:
        check_adapter(self.name(), model)
        stream = block_outputs(model.graph)
        if not 1 <= self.blocks <= len(stream):
            raise NotApplicable(
                f"adapter-cache{{blocks={self.blocks}}}: this host has {len(stream)} blocks; use 1 "
                f"to {len(stream)}"
            )

    def apply(self, model: ir.Model) -> None:
        stream, size = block_outputs(model.graph)[self.blocks - 1], elements(model)
        emit = Emit(model.graph, self.name(), block=BLOCK_NAME)
        write_rows(model, emit, Adapter.of(model, self.name()), stream, self.blocks - 1)
        count_weights(model, size)

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return feed | empty_adapter(feed, after)

    def within(self, blocks: int) -> AdapterCache:
        return replace(self, blocks=max(1, min(self.blocks, blocks - 1)))


def check_adapter(who: str, model: ir.Model, prefix: bool = False) -> None:
    """Raise NotApplicable unless a model carries an adapter of its width, a `prefix` or not, and
    has a cache."""
    width, hidden = Adapter.of(model, who, prefix).width, decoder_facts(model).hidden
    if width != hidden:
        raise NotApplicable(
            f"{who}: the adapter reads {width} numbers, and the host's hidden states have {hidden}:"
            " it is another model's"
        )
    if not block_outputs(model.graph):
        raise NotApplicable(f"{who} needs stamped blocks; run anchors first")
    if input_of(model, "write_index") is None:
        raise NotApplicable(f"{who} writes a cache beside the host's; put kv-cache before it")
    if (known := port_of(model, "adapter.key")) is not None:
        raise NotApplicable("the graph has the cache of an adapter already", [known.name])


def write_rows(
    model: ir.Model, emit: Emit, adapter: Adapter, stream: ir.Value, layer: int
) -> tuple[ir.Value, Rows, list[tuple[ir.Value, ir.Value]]]:
    """Write what the adapter makes of new rows of the stream that leaves block `layer`, and put it
    into its cache: the stream in fp32, the rows, and of keys and values the cache's input and that
    with the rows written."""
    index, positions = input_of(model, "write_index"), input_of(model, "positions")
    assert index is not None
    assert positions is not None
    cast = stream.dtype not in (None, FLOAT)
    x = emit.op("Cast", [stream], to=FLOAT) if cast else stream
    rows = adapter.rows(emit, x, positions)
    ports, slots = list[Port](), list[tuple[ir.Value, ir.Value]]()
    heads = adapter.note.kv_heads, adapter.note.head_size
    for part, fresh in zip(PARTS, (rows.key, rows.value), strict=True):
        fresh.type = ir.TensorType(FLOAT)
        port = cache_port(f"adapter.{part}", f"adapter.{part}", *heads, layer, fresh)
        slots.append(scattered(model.graph, emit, fresh, port, index))
        ports += both_ways(port)
    write_ports(model, [*read_ports(model), *ports])
    return x, rows, slots


def count_weights(model: ir.Model, size: int) -> None:
    """Note in the facts of a model that it held `size` numbers before."""
    facts = decoder_facts(model)
    now = max(facts.parameters + elements(model) - size, 0)
    write_facts(model, replace(facts, parameters=now))


def empty_adapter(feed: Feed, after: ir.Model) -> Feed:
    """Caches of an adapter as long as the host's, which hold poison."""
    ports = slot_ports(read_ports(after), "in")
    own = [p for p in ports if p.role.startswith("adapter.")]
    batch, slots = next(feed[p.name].shape[::2] for p in ports if p.name in feed)
    return {
        p.name: np.full((batch, int(p.shape[1]), slots, int(p.shape[3])), POISON, p.dtype)
        for p in own
    }
