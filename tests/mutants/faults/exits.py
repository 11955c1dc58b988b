"""Exits: a rest that begins elsewhere, reads other hidden states, or writes another's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.depth_rest import DepthRest
from graftline.runtimes.ort.rest import RestSession
from graftline.runtimes.ort.session import OrtSession

REST = GRAFTS["depth-rest"]
EXIT = {"recipe": "layer-skip", "exits": (1,)}
TREES = {"recipe": "layer-skip-tree", "exits": (1,)}


def _late(real: Callable[[DepthRest, ir.Model], None], touched: Touched) -> Any:
    """The MLP of the first block that is left reads the stream, and adds to what it is alone."""

    def apply(self: DepthRest, model: ir.Model) -> None:
        stream = block_outputs(model.graph)
        end = stream[self.blocks].producer()
        assert end is not None
        touched.count += rewired(end, 0, stream[self.blocks - 1])
        real(self, model)

    return apply


def _halved(model: ir.Model) -> int:
    """The hidden states are taken by half."""
    given = next(v for v in model.graph.inputs if (v.name or "").startswith("stream."))
    readers = list(given.uses())
    half = op(model, model.graph[0], "Mul", [given, constant(model, 0.5, np.float32)])
    return sum(rewired(node, place, half) for node, place in readers)


def _one_slot_late(model: ir.Model) -> int:
    """Keys and values are written one slot behind their place."""
    index = next(v for v in model.graph.inputs if v.name == "write_index")
    users = list(index.uses())
    late = op(model, users[0][0], "Add", [index, constant(model, [1], np.int64)])
    return sum(rewired(node, place, late) for node, place in users)


def _sees_all(real: Callable[..., Any], touched: Touched) -> Any:
    """Rows of a tree that was begun see all rows before them, of other branches too."""

    def resume_tree(self: RestSession, row: int, start: int, states: Any, depth: Any, seen: Any
                    ) -> Any:  # fmt: skip
        touched.count += 1
        return real(self, row, start, states, depth, np.tri(len(seen), dtype=np.bool_))

    return resume_tree


def _one_deeper(real: Callable[..., Any], touched: Touched) -> Any:
    """Nodes that an exit reads have the position behind their own."""

    def follow_level(self: OrtSession, row: int, base: int, start: int, tokens: Any, features: Any,
                     depth: int, seen: Any) -> Any:  # fmt: skip
        touched.count += 1
        return real(self, row, base, start, tokens, features, depth + 1, seen)

    return follow_level


EXITS = [
    Mutant("rest-without-a-sum", "depth-rest: apply", "the first block left drops its attention",
           "plain", "joined", instead(REST, "apply", _late), EXIT),
    Mutant("rest-with-half-the-stream", "depth-rest: apply", "hidden states are taken by half",
           "plain", "joined", after(REST, _halved), EXIT),
    Mutant("rest-one-slot-late", "depth-rest: apply", "caches are written one slot late",
           "plain", "joined", after(REST, _one_slot_late), EXIT),
    Mutant("rest-that-sees-other-branches", "runtimes: rest", "a row sees rows of other branches",
           "plain", "resumed", instead(RestSession, "resume_tree", _sees_all), TREES),
    Mutant("exit-one-level-deeper", "runtimes: session", "nodes are read one position late",
           "plain", "resumed", instead(OrtSession, "follow_level", _one_deeper), TREES),
]  # fmt: skip
