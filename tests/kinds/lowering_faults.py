"""Faults of a lowering, put into the graph that it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.passes.anchors.anchors import with_role
from graftline.passes.graph.emit import Emit
from graftline.passes.lower.ort.lower import LowerOrt

Fault = Callable[[ir.Model], None]
BLOCKS = 4
"""Of the hosts whose lowering is at fault."""
WINDOW = 40


def lowered_with(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Lowering of the whole host, not of the reduced one, has a fault."""
    real = LowerOrt.apply

    def apply(self: LowerOrt, model: ir.Model) -> None:
        real(self, model)
        if len(with_role(model.graph, "attention")) == BLOCKS:
            fault(model)

    monkeypatch.setattr(LowerOrt, "apply", apply)


def change(value: ir.Value | None, array: Callable[[Any], Any]) -> None:
    assert value is not None
    assert value.const_value is not None
    new = array(value.const_value.numpy().copy())
    value.const_value = ir.tensor(new, name=value.name)


def zeroed_head(model: ir.Model) -> None:
    head = next(n for n in with_role(model.graph, "lm_head"))
    change(head.inputs[1], np.zeros_like)


def late_rotary(model: ir.Model) -> None:
    node = with_role(model.graph, "attention")[0]

    def off_by_one(table: Any) -> Any:
        table[30:] = table[29:-1].copy()
        return table

    for table in node.inputs[7:9]:
        change(table, off_by_one)


def by_row_order(model: ir.Model) -> None:
    """Queries and keys are turned by the slot of a row, not by its depth in the tree."""
    nodes = with_role(model.graph, "attention")
    emit = Emit(model.graph, "fault", nodes[0], block="shared")
    inputs = {v.name: v for v in model.graph.inputs}
    count = emit.op("Squeeze", [emit.op("Shape", [inputs["tokens"]], start=1, end=2)])
    zero, one = emit.const("fault.0", 0, np.int64), emit.const("fault.1", 1, np.int64)
    rows = emit.op("Range", [zero, count, one])
    axis = emit.const("fault.axis", [1], np.int64)
    slots = emit.op("Add", [emit.op("Unsqueeze", [inputs["write_index"], axis]), rows])
    for node in nodes:
        node.replace_input_with(9, slots)


def widened(size: int) -> Fault:
    def fault(model: ir.Model) -> None:
        for node in with_role(model.graph, "attention"):
            assert node.attributes["local_window_size"].as_int() == WINDOW
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", size)

    return fault
