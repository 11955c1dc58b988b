"""Contexts that a stream carries on: too few rows, rows of another place, rows of another layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import nodes
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.grafts import carry_context
from graftline.ports import read_ports, write_ports
from graftline.roles import CONTEXT
from graftline.runtimes.one_pass.carried import Carried


def _less(real: Any, touched: Touched) -> Any:
    """The last context has a row less than its convolution reads."""

    def contexts(*given: Any) -> Any:
        *rest, last = real(*given)
        touched.count += 1
        return [*rest, replace(last, rows=last.rows - 1)]

    return contexts


def _earlier(model: ir.Model) -> int:
    """What is carried on is a row older."""
    found = [n for n in nodes(model, "Slice") if n.outputs[0].is_graph_output()]
    for node in found:
        for place in (1, 2):
            value = node.inputs[place]
            assert value is not None
            assert value.const_value is not None
            number = int(value.const_value.numpy()[0]) - 1 if place == 1 else -1
            made = ir.Value(name=f"{node.outputs[0].name}.{place}", type=value.type)
            made.const_value = ir.tensor(np.asarray([number], np.int64), name=made.name)
            model.graph.register_initializer(made)
            node.replace_input_with(place, made)
    return len(found)


def _crossed(model: ir.Model) -> int:
    """Two contexts of one shape go to one another's convolution."""
    ports = list(read_ports(model))
    out = [p for p in ports if p.role == CONTEXT and p.direction == "out"]
    pair = next([p, q] for p in out for q in out if p.name < q.name and p.shape == q.shape)
    mirrors = {pair[0].name: pair[1].mirror, pair[1].name: pair[0].mirror}
    write_ports(model, [replace(p, mirror=mirrors.get(p.name, p.mirror)) for p in ports])
    return 2


def _forgotten(real: Any, touched: Touched) -> Any:
    """Every piece begins anew."""

    def run(self: Carried, chunks: Any, feed_of: Any) -> Any:
        for chunk in chunks:
            touched.count += 1
            yield from real(self, [chunk], feed_of)

    return run


ON, GRAFT = {"passes": "carry-context"}, GRAFTS["carry-context"]
CONTEXTS = [
    Mutant("context-of-a-row-less", "contexts", "a convolution has a row less in front", "causal",
           "interface or neutral", instead(carry_context, "contexts", _less), ON),
    Mutant("context-of-older-rows", "carry-context", "what is carried on is a row older", "causal",
           "carried-on", after(GRAFT, _earlier), ON),
    Mutant("contexts-crossed", "carry-context", "two contexts change places", "causal",
           "carried-on", after(GRAFT, _crossed), ON),
    Mutant("contexts-forgotten", "carried: stream", "every chunk begins anew", "causal",
           "carried", instead(Carried, "stream", _forgotten), ON),
]  # fmt: skip
