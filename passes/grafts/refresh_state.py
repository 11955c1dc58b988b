"""refresh-state: a step of all blocks leaves what later steps need to pass by some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_of, block_outputs, with_role
from graftline.passes.grafts.adapter_cache import stream_of
from graftline.passes.grafts.kv_cache import (
    POISON,
    both_ways,
    cache_port,
    carried_caches,
    scattered,
    some_rows,
)
from graftline.passes.grafts.low_rank import FLOAT, Corrections
from graftline.passes.grafts.masks import HELD_MASK, MASK_KEY, meaning
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.ports import input_of, port_of, roles_of
from graftline.passes.graph.text import write
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import SHARED, Evaluate, Graft, Law
from graftline.ports import HELD, REFRESHED, Port, read_ports, slot_ports, write_ports

BLOCK_NAME = "refresh"
"""The block that its nodes are stamped with: none of the host's."""
_FLAGS = """
    one = Constant <value_ints = [1]> ()
    batch = Shape <start = 0, end = 1> (tokens)
    rows = Shape <start = 1, end = 2> (tokens)
    shape = Concat <axis = 0> (batch, one, rows, one)
    flags = Expand (flag, shape)
"""
_SEEN = """
    half = Constant <value_floats = [0.5]> ()
    there = Greater (held, half)
    seen = Transpose <perm = [0, 1, 3, 2]> (there)
"""
_LAST = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    first = Slice (rows, zero, one, one)
    index = Unsqueeze (first, two)
    row = GatherND <batch_dims = 1> (stream, index)
    state = Unsqueeze (row, one)
"""


def refreshed(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """What is kept of each block is the host's stream behind it, at the first row asked for."""
    assert isinstance(graft, RefreshState)
    layers, roles = graft.layers(before), roles_of(after)
    batch, rows = feed[roles.inputs["tokens"]].shape
    place = max(rows - 2, 0)
    fed = graft.neutral(feed, after) | roles.feed(rows=np.full((batch, 1), place, np.int64))
    streams = [stream_of(before, layer + 1, feed, evaluate)[:, place] for layer in layers]
    port = port_of(after, REFRESHED, "out")
    assert port is not None, "the graft adds it"
    comparison = Comparison(graft.name(), "refreshed", activation_dtype(after))
    got = evaluate(after, fed)[port.name].astype(np.float32)
    worst = comparison.output(port.name, got, np.stack(streams, axis=1)[:, :, None])
    what = f"states of {len(layers)} blocks are the host's stream behind them at row {place}"
    return Evidence(what, worst, comparison.limit)


def held(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """A step holds all its slots; in these blocks it sees no slot that is not held, whatever lies
    in it, and in these blocks alone."""
    assert isinstance(graft, RefreshState)
    made, layers = roles_of(after), graft.layers(before)
    rows = feed[made.inputs["tokens"]].shape[1]
    cut, logits = max(1, rows // 2), made.outputs["logits"]
    half = evaluate(after, graft.neutral(some_rows(made, feed, slice(0, cut)), after))
    flags = port_of(after, HELD, "out")
    assert flags is not None, "the graft adds it"
    if not (half[flags.name][:, :, :cut] == 1).all():
        raise LawBroken(graft.name(), "held", f"'{flags.name}'", "lacks a slot that was computed")
    carried = carried_caches(after, half)
    second = graft.neutral(some_rows(made, feed, slice(cut, rows)), after) | carried
    hole = slice(cut - 1, cut)  # the last that was written: windows see it, too

    def answer(size: float, within: bool, seen: float) -> Array:
        step = dict(second)
        for port in slot_ports(read_ports(after), "in"):
            if port.role == HELD or (port.layer in layers) == within:
                array = carried[port.name].copy()
                array[:, :, hole] = seen if port.role == HELD else size
                step[port.name] = array
        return evaluate(after, step)[logits]

    comparison = Comparison(graft.name(), "held", activation_dtype(after))
    apart = answer(3.0, True, 0.0)
    worst = comparison.output(logits, answer(-POISON, True, 0.0), apart)
    for what, one, other in (
        ("its own slots that are held", answer(3.0, True, 1.0), apart),
        ("slots of other blocks", answer(3.0, False, 0.0), answer(-3.0, False, 0.0)),
    ):
        if np.allclose(one, other, rtol=comparison.limit, atol=0):
            raise LawBroken(graft.name(), "held", f"'{logits}'", f"does not see {what}")
    what = f"{rows - cut} rows do not see a slot that {len(layers)} blocks do not hold"
    return Evidence(what, worst, comparison.limit)


@dataclass(frozen=True)
class RefreshState(Graft):
    """Lets a step of all blocks leave what later steps need to pass by those that have low-rank
    corrections (LoRA-Drop, arXiv 2601.02569).

    refreshed [B, L, 1, H]: what leaves each of these L blocks at the first row that is asked for,
    which is the last token of a prompt and the token of a step. held [B, 1, S, 1]: 1 in every slot
    that the step has written. The attention of these blocks sees no slot where it is 0: a token
    that passed them by has neither keys nor values there.

    `blocks`: of corrections for more than a host's first so many blocks, those; 0: all. Neutral:
    caches and flags that hold nothing yet.
    """

    laws: ClassVar[tuple[Law, ...]] = (refreshed, held)

    blocks: int = 0

    def layers(self, model: ir.Model) -> Mapping[int, int]:
        """The blocks of that host that later steps pass by, and whose correction each has. Raises
        NotApplicable."""
        return Corrections.of(model, self.name()).of_blocks(model, small=self.blocks > 0)

    def requires(self, model: ir.Model) -> None:
        if not block_outputs(model.graph):
            raise NotApplicable("refresh-state needs stamped blocks; run anchors first")
        width, hidden = Corrections.of(model, self.name()).width, decoder_facts(model).hidden
        if width != hidden:
            raise NotApplicable(
                f"refresh-state: the corrections read {width} numbers, and the host's hidden "
                f"states have {hidden}: they are another model's"
            )
        layers = self.layers(model)
        for role, graft in (("write_index", "kv-cache"), ("rows", "select-rows")):
            if input_of(model, role) is None:
                raise NotApplicable(f"refresh-state needs the input '{role}'; put {graft} before")
        if (mask := port_of(model, "mask")) is not None:
            raise NotApplicable(
                "refresh-state keeps the state of one row, and trees have several; leave tree-mask "
                "out", [mask.name],
            )  # fmt: skip
        if (known := port_of(model, HELD)) is not None:
            raise NotApplicable("the graph keeps such states already", [known.name])
        attended = {block_of(node) for node in with_role(model.graph, "attention")}
        if without := [layer for layer in layers if layer not in attended]:
            raise NotApplicable(f"refresh-state: block {without[0]} has no attention of its own")

    def apply(self, model: ir.Model) -> None:
        graph, layers = model.graph, self.layers(model)
        held_port, written = self._held(model)
        masked: dict[ir.Value, ir.Value] = {}
        for node in (n for n in with_role(graph, "attention") if block_of(n) in layers):
            mask = node.inputs[3]
            assert mask is not None, "kv-cache gives every attention a mask"
            if mask not in masked:
                masked[mask] = _without_holes(Emit(graph, self.name(), node, SHARED), mask, written)
            node.replace_input_with(3, masked[mask])
            node.metadata_props[MASK_KEY] = json.dumps({**meaning(node), "kind": HELD_MASK})
        states = self._states(model, layers)
        write_ports(model, [*read_ports(model), *both_ways(held_port), *both_ways(states)])

    def _held(self, model: ir.Model) -> tuple[Port, ir.Value]:
        """The port of the flags, and the flags with those of a step's rows."""
        graph, index = model.graph, input_of(model, "write_index")
        assert index is not None
        emit = Emit(graph, self.name(), graph[0], SHARED)
        flags = step_flags(model, emit, 1.0)
        port = replace(cache_port(HELD, HELD, 1, 1, 0, flags), layer=None)
        return port, scattered(graph, emit, flags, port, index)[1]

    def _states(self, model: ir.Model, layers: Mapping[int, int]) -> Port:
        """Make the states an output; their port."""
        graph, rows = model.graph, input_of(model, "rows")
        assert rows is not None
        emit, stream = Emit(graph, self.name(), block=BLOCK_NAME), block_outputs(graph)
        given = ({"rows": rows, "stream": stream[layer]} for layer in layers)
        states = [write(emit, _LAST, one, ["state"])[0] for one in given]
        whole = emit.op("Concat", states, axis=1)
        dtype = stream[-1].dtype or FLOAT
        shape = ("B", len(layers), 1, decoder_facts(model).hidden)
        new_input(graph, REFRESHED, dtype, shape)
        port = Port(REFRESHED, REFRESHED, "in", dtype.numpy().name, shape, state="running")
        new_output(graph, whole, f"{REFRESHED}.out", dtype, shape)
        return port

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        return feed | empty_state(feed, after)

    def apart(self, before: ir.Model) -> Mapping[int, bool]:
        return dict.fromkeys(self.layers(before), True)

    def within(self, blocks: int) -> RefreshState:
        return replace(self, blocks=blocks)


def step_flags(model: ir.Model, emit: Emit, flag: float) -> ir.Value:
    """Write [B, 1, N, 1]: `flag` for every row of a step."""
    tokens = input_of(model, "tokens")
    assert tokens is not None
    value = emit.const(f"held.{flag:g}", [flag], np.float32)
    (flags,) = write(emit, _FLAGS, {"tokens": tokens, "flag": value}, ["flags"])
    flags.type = ir.TensorType(FLOAT)
    return flags


def empty_state(feed: Feed, after: ir.Model) -> Feed:
    """Flags as long as the host's caches, and states: all of them poison."""
    batch, slots = next(
        feed[p.name].shape[::2] for p in slot_ports(read_ports(after), "in") if p.name in feed
    )
    found: Feed = {}
    for port in read_ports(after):
        if port.direction == "in" and port.role in (HELD, REFRESHED):
            known = {"B": batch, "S": slots}
            shape = [known[d] if isinstance(d, str) else d for d in port.shape]
            found[port.name] = np.full(shape, POISON, np.dtype(port.dtype))
    return found


def _without_holes(emit: Emit, mask: ir.Value, written: ir.Value) -> ir.Value:
    """A mask, bool or a bias, that hides slots which are not held."""
    (seen,) = write(emit, _SEEN, {"held": written}, ["seen"])
    if mask.dtype == ir.DataType.BOOL:
        return emit.op("And", [mask, seen])
    hidden = emit.const("minus_infinity", -np.inf, np.float32)
    return emit.op("Where", [seen, mask, hidden])
