"""Routers: of another stream, another row or another block; and a route that was not chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, nodes, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.pipeline.graft import MADE_BY
from graftline.runtimes.schedules.course import Course

ROUTERS = GRAFTS["routers"]
FIRST = {"head": "router"}


def _own(model: ir.Model, op_type: str) -> list[ir.Node]:
    found = nodes(model, op_type)
    return [n for n in found if n.metadata_props.get(MADE_BY) == ROUTERS.name()]


def _behind_its_block(model: ir.Model) -> int:
    """A router reads what leaves its block."""
    node, streams = _own(model, "GatherND")[0], block_outputs(model.graph)
    stream = node.inputs[0]
    assert stream is not None
    return rewired(node, 0, streams[streams.index(stream) + 1])


def _another_row(model: ir.Model) -> int:
    """Routers read the row before the one that is asked for."""
    found = _own(model, "GatherND")
    moved = [op(model, n, "Sub", [n.inputs[1], constant(model, [1], np.int64)]) for n in found]
    return sum(rewired(n, 1, index) for n, index in zip(found, moved, strict=True))


def _another_block(model: ir.Model) -> int:
    """What a router says stands at the block behind its own."""
    (node,) = _own(model, "Gather")
    columns = node.inputs[1]
    assert columns is not None
    assert columns.const_value is not None
    moved = np.roll(columns.const_value.numpy(), 1)
    columns.const_value = ir.tensor(moved, name=columns.name)
    return 1


def _unscaled(model: ir.Model) -> int:
    """The stream is not divided by its size."""
    (node,) = _own(model, "Div")
    node.outputs[0].replace_all_uses_with(node.inputs[0])  # pyright: ignore[reportArgumentType]
    return 1


def _not_chosen(real: Callable[[Course, int], Any], touched: Touched) -> Any:
    """A text goes by the route behind the one that it took."""

    def graph(self: Course, step: int) -> Any:
        touched.count += 1
        return self.graphs[(self.route(step) + 1) % len(self.graphs)]

    return graph


ROUTING = [
    Mutant("router-behind-its-block", "routers", "it reads what leaves its block",
           "plain", "routed", after(ROUTERS, _behind_its_block), FIRST),
    Mutant("router-of-another-row", "routers", "it reads the row before",
           "plain", "routed", after(ROUTERS, _another_row), FIRST),
    Mutant("router-of-another-block", "routers", "it speaks of the block behind its own",
           "plain", "routed", after(ROUTERS, _another_block), FIRST),
    Mutant("router-of-an-unscaled-stream", "routers", "the stream is not scaled",
           "plain", "routed", after(ROUTERS, _unscaled), FIRST),
    Mutant("route-that-was-not-chosen", "schedules: course", "a text goes by another route",
           "plain", "schedule", instead(Course, "graph", _not_chosen), FIRST),
]  # fmt: skip
