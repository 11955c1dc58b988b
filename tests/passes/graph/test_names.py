"""Names that a pass makes and the host has already."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.names import separate_names


def test_the_host_s_values_and_weights_give_way() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="host")
    host, made = Emit(graph, "host"), Emit(graph, "graft")
    weight = host.initializer("mask", ir.tensor(np.ones(2, np.float32), name="mask"))
    first = host.op("Neg", [weight], "slots")
    port = new_input(graph, "mask", ir.DataType.FLOAT, [2])
    second = made.op("Add", [first, port], "slots")
    twice = made.op("Neg", [second], "slots")
    new_output(graph, made.op("Neg", [twice]), "sum", ir.DataType.FLOAT, [2])
    separate_names(graph, "graft")
    names = [v.name for v in (port, weight, first, second, twice)]
    assert names == ["mask", "mask.host", "slots.host", "slots", "slots"]
    assert graph.initializers["mask.host"] is weight
    assert "mask" not in graph.initializers
