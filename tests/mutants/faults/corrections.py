"""Blocks that are stood in for: another block's state, a correction of something else, holes that
are seen, and states of tokens that passed blocks by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, nodes, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.graph.ports import input_of, output_of
from graftline.passes.pipeline.graft import MADE_BY
from graftline.ports import HELD, REFRESHED
from graftline.runtimes.schedules.course import Course
from graftline.runtimes.schedules.refresh import Refresh

WHOLE, LIGHT = GRAFTS["refresh-state"], GRAFTS["skip-substitute"]
LORA_DROP = {"head": "lora-drop"}


def _own(model: ir.Model, graft: Any, op_type: str) -> list[ir.Node]:
    found = nodes(model, op_type)
    return [n for n in found if n.metadata_props.get(MADE_BY) == graft.name()]


def _another_block(model: ir.Model) -> int:
    """What is kept of a block is the stream that enters it."""
    found = _own(model, WHOLE, "GatherND")
    streams = block_outputs(model.graph)
    stream = found[0].inputs[0]
    assert stream is not None
    return rewired(found[0], 0, streams[streams.index(stream) - 1])


def _another_row(model: ir.Model) -> int:
    """The state of the row behind the first that is asked for."""
    found = _own(model, WHOLE, "GatherND")
    moved = [op(model, n, "Add", [n.inputs[1], constant(model, [1], np.int64)]) for n in found]
    return sum(rewired(n, 1, index) for n, index in zip(found, moved, strict=True))


def _holes_seen(model: ir.Model) -> int:
    """Blocks see slots that hold nothing."""
    found = _own(model, WHOLE, "And")
    for node in found:
        node.outputs[0].replace_all_uses_with(node.inputs[0])  # pyright: ignore[reportArgumentType]
    return len(found)


def _hidden_from_all(model: ir.Model) -> int:
    """Blocks that are always computed do not see these slots either."""
    (node,) = _own(model, WHOLE, "And")
    order, plain = list(model.graph), node.inputs[0]
    assert plain is not None
    behind = order[order.index(node) + 1 :]
    later = [(user, place) for user, place in plain.uses() if user in behind]
    return sum(rewired(user, place, node.outputs[0]) for user, place in later)


def _unscaled(model: ir.Model) -> int:
    """A correction is twice as large."""
    end = _own(model, LIGHT, "Add")[0]
    twice = op(model, end, "Mul", [end.inputs[1], constant(model, 2.0, np.float32)])
    return rewired(end, 1, twice)


def _of_the_embedding(model: ir.Model) -> int:
    """A correction reads what entered the first block."""
    stream = next(n for n in model.graph if n.op_type == "Gather").outputs[0]
    products = _own(model, LIGHT, "MatMul")
    return rewired(products[-2], 0, stream)


def _states_lost(model: ir.Model) -> int:
    """A light step leaves zeros where states were."""
    given, states = input_of(model, REFRESHED), output_of(model, REFRESHED)
    node = None if states is None else states.producer()
    assert node is not None
    zero = op(model, node, "Sub", [given, given])
    return rewired(node, 0, zero)


def _called_held(model: ir.Model) -> int:
    """A light step says that its slots hold something."""
    flags = output_of(model, HELD)
    node = None if flags is None else flags.producer()
    assert node is not None
    ones = op(model, node, "Add", [node.inputs[1], constant(model, 1.0, np.float32)])
    return rewired(node, 1, ones)


def _light_at_first(real: Callable[[Refresh, int, int], int], touched: Touched) -> Any:
    """The graphs are swapped: three of four tokens are computed by all blocks, and none of them
    by the graph that the course calls whole."""

    def graph(self: Course, step: int) -> Any:
        touched.count += 1
        return self.graphs[1 - self.schedule.route(step, 1)]

    return graph


CORRECTIONS = [
    Mutant("state-of-another-block", "refresh-state", "it keeps what enters the block",
           "plain", "refreshed", after(WHOLE, _another_block), LORA_DROP),
    Mutant("state-of-another-row", "refresh-state", "it keeps another row's state",
           "plain", "neutral or refreshed", after(WHOLE, _another_row), LORA_DROP),
    Mutant("holes-that-are-seen", "refresh-state", "attention sees slots that hold nothing",
           "plain", "held", after(WHOLE, _holes_seen), LORA_DROP),
    Mutant("holes-hidden-from-all", "refresh-state", "other blocks do not see them either",
           "plain", "held", after(WHOLE, _hidden_from_all), LORA_DROP),
    Mutant("correction-twice-as-large", "skip-substitute", "a correction is doubled",
           "plain", "substituted", after(LIGHT, _unscaled), LORA_DROP),
    Mutant("correction-of-another-stream", "skip-substitute", "it reads another block's stream",
           "plain", "substituted", after(LIGHT, _of_the_embedding), LORA_DROP),
    Mutant("states-lost-on-the-way", "skip-substitute", "a light step hands zeros on",
           "plain", "substituted", after(LIGHT, _states_lost), LORA_DROP),
    Mutant("skipped-slots-called-held", "skip-substitute", "its slots are said to hold something",
           "plain", "substituted", after(LIGHT, _called_held), LORA_DROP),
    Mutant("refresh-turned-round", "schedules: course", "light steps where whole ones are due",
           "plain", "schedule", instead(Course, "graph", _light_at_first), LORA_DROP),
]  # fmt: skip
