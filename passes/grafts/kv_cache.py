"""kv-cache: give every attention a fixed-capacity cache that the step writes in place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import DecoderFacts, decoder_facts, write_facts
from graftline.law import Evidence
from graftline.owners import TARGET
from graftline.passes.anchors.anchors import block_of, with_role
from graftline.passes.canonical.facts import addressable
from graftline.passes.grafts.masks import SlotMasks
from graftline.passes.graph.emit import Emit, drop_unused, new_input, new_output
from graftline.passes.graph.ports import input_of, roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.laws.masks import masks
from graftline.passes.pipeline.graft import SHARED, Evaluate, Graft, Law, WeightFreeLaw
from graftline.ports import Port, read_ports, slot_ports, write_ports
from graftline.roles import Roles

WRITE_INDEX = "write_index"
"""The name it gives the port that says from which slot on a step writes the host's caches."""
POISON = 1e3
"""What unwritten cache slots hold in a law's feed: finite, large, and never to be seen."""


def chunked(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Feeding the rows in chunks, caches carried over, gives the rows of the host; sequences of a
    batch may stand at different lengths."""
    roles, made = roles_of(before), roles_of(after)
    logits = roles.outputs["logits"]
    whole = evaluate(before, feed)[logits]
    batch, rows = feed[roles.inputs["tokens"]].shape
    cut = max(1, rows // 2)
    first = graft.neutral({k: v[:, :cut] for k, v in feed.items()}, after)
    first |= empty_caches(after, batch, rows + 2)
    half = evaluate(after, first)
    starts = np.asarray([max(0, cut - 2 * (n % 2)) for n in range(batch)])
    at = starts[:, None] + np.arange(rows - cut)
    second = first | carried_caches(after, half)
    second |= {k: np.take_along_axis(v, at, axis=1) for k, v in feed.items()}
    second |= made.feed(write_index=starts)
    rest = evaluate(after, second)[logits]
    comparison = Comparison(graft.name(), "chunked", activation_dtype(after))
    gap = comparison.output(logits, half[logits], whole[:, :cut])
    expected = np.take_along_axis(whole, at[..., None], axis=1)
    gap = max(gap, comparison.output(logits, rest, expected))
    told = " and ".join(str(s) for s in dict.fromkeys(starts.tolist()))
    what = f"{cut} rows, then {rows - cut} more from slot {told} on, equal one pass"
    return Evidence(what, gap, comparison.limit)


def carried_caches(model: ir.Model, outputs: Feed) -> Feed:
    """The caches a step gave, as inputs of the next."""
    return {p.mirror: outputs[p.name] for p in read_ports(model) if p.mirror is not None}


def some_rows(roles: Roles, feed: Feed, at: slice) -> Feed:
    """A feed of some of its rows, all of them asked for."""
    cut = dict(feed)
    for name in (roles.inputs["tokens"], roles.inputs["positions"]):
        cut[name] = feed[name][:, at]
    batch, count = cut[name].shape  # pyright: ignore[reportPossiblyUnboundVariable]
    rows: np.ndarray = np.tile(np.arange(count, dtype=np.int64), (batch, 1))
    return cut | roles.feed(rows=rows, write_index=np.full(batch, at.start))


@dataclass(frozen=True)
class KvCache(Graft):
    """Adds ports cache.{i}.key/value [B, K, S, D] and write_index [B].

    Row n of a step is written to slot write_index + n and sees slots 0 .. write_index + n. Neutral:
    an empty cache and write_index 0.
    """

    laws: ClassVar[tuple[Law, ...]] = (chunked,)
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = (masks,)

    def requires(self, model: ir.Model) -> None:
        found = with_role(model.graph, "attention")
        if not found:
            raise NotApplicable("kv-cache needs stamped attention; run anchors first")
        if cache := slot_ports(read_ports(model), "in", TARGET):
            raise NotApplicable("the graph already has a cache", [cache[0].name])
        for role in ("tokens", "positions"):
            if input_of(model, role) is None:
                raise NotApplicable(f"kv-cache needs the input '{role}'; run canonicalize first")

    def apply(self, model: ir.Model) -> None:
        graph, ports = model.graph, list(read_ports(model))
        attention = with_role(graph, "attention")
        tokens, positions = input_of(model, "tokens"), input_of(model, "positions")
        assert tokens is not None
        assert positions is not None
        write_index = new_input(graph, WRITE_INDEX, ir.DataType.INT64, ["B"])
        ports.append(Port(WRITE_INDEX, "write_index", "in", "int64", ("B",)))
        slots: SlotMasks | None = None
        for node in attention:
            layer = block_of(node)
            assert layer is not None, "an attention lies in a block"
            caches = [self._scatter(graph, node, i, layer, write_index, ports) for i in (1, 2)]
            if slots is None:
                emit = Emit(graph, self.name(), graph[0], block=SHARED)
                slots = SlotMasks(emit, tokens, positions, write_index, caches[0])
            _set_mask(node, slots.of(node))
        write_ports(model, ports)
        facts = _with_cache_shape(decoder_facts(model), ports)
        write_facts(model, replace(facts, positions=addressable(positions, facts.positions)))
        drop_unused(model)

    def _scatter(
        self,
        graph: ir.Graph,
        node: ir.Node,
        operand: int,
        layer: int,
        write_index: ir.Value,
        ports: list[Port],
    ) -> ir.Value:
        """Route one operand of the attention through its cache; returns the cache's input."""
        kind = "key" if operand == 1 else "value"
        fresh = node.inputs[operand]
        assert fresh is not None
        heads, size = _heads_and_size(node, fresh)
        port = cache_port(f"cache.{layer}.{kind}", f"cache.{kind}", heads, size, layer, fresh)
        cache, written = scattered(graph, Emit(graph, self.name(), node), fresh, port, write_index)
        node.replace_input_with(operand, written)
        ports += both_ways(port)
        return cache

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        roles = roles_of(after)
        batch, rows = feed[roles.inputs["tokens"]].shape
        added = roles.feed(write_index=np.zeros(batch, np.int64))
        return {**feed, **added, **empty_caches(after, batch, rows + 2)}


def cache_port(
    name: str, role: str, heads: int, size: int, layer: int, fresh: ir.Value
) -> Port:
    """The input of a cache of new rows `fresh` [B, heads, N, size]."""
    dtype = (fresh.dtype or ir.DataType.FLOAT).numpy().name
    shape = ("B", heads, "S", size)
    return Port(name, role, "in", dtype, shape, layer, state="slots", valid_by=WRITE_INDEX,
                compare="written")  # fmt: skip


def both_ways(port: Port) -> tuple[Port, Port]:
    """A cache's input, and the output that is the next step's value of it."""
    return port, replace(port, name=f"{port.name}.out", direction="out", mirror=port.name)


def scattered(
    graph: ir.Graph, emit: Emit, fresh: ir.Value, port: Port, write_index: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Make a cache's input and output: the input, and that with the new rows written."""
    dtype = fresh.dtype or ir.DataType.FLOAT
    cache = new_input(graph, port.name, dtype, port.shape)
    written = emit.op("TensorScatter", [cache, fresh, write_index], axis=2, mode="linear")
    new_output(graph, written, f"{port.name}.out", dtype, port.shape)
    return cache, written


def empty_caches(model: ir.Model, batch: int, slots: int) -> Feed:
    """Caches of `slots` slots that hold poison, as a graph with caches expects them."""
    feed: Feed = {}
    for port in slot_ports(read_ports(model), "in"):
        known = {"B": batch, "S": slots}
        shape = [known[d] if isinstance(d, str) else d for d in port.shape]
        feed[port.name] = np.full(shape, POISON, np.dtype(port.dtype))
    return feed


def _heads_and_size(node: ir.Node, value: ir.Value) -> tuple[int, int]:
    shape = value.shape
    heads, size = (shape[1], shape[3]) if shape is not None and len(shape) == 4 else (None, None)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise NotApplicable(
            f"the heads of '{value.name}' are not known; shape inference gave {shape}",
            [node.name or ""],
        )
    return heads, size


def _set_mask(node: ir.Node, mask: ir.Value) -> None:
    if len(node.inputs) < 4:
        node.resize_inputs(4)
    node.replace_input_with(3, mask)
    node.attributes.pop("is_causal", None)


def _with_cache_shape(facts: DecoderFacts, ports: list[Port]) -> DecoderFacts:
    first = next(p for p in ports if p.role == "cache.key")
    heads, size = first.shape[1], first.shape[3]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    return replace(facts, kv_heads=heads, head_size=size)
