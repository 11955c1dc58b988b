"""Steps of some positions of a canvas: tables of others, rows beside their own, and what is kept of
another operand, or is not read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.anchors.canvas.rows import Rows
from graftline.passes.grafts.chosen_rows import ChosenRows
from graftline.ports import by_role, read_ports, write_ports
from graftline.roles import KEPT
from graftline.runtimes.ort import graph as ort


def _in_order(real: Any, touched: Touched) -> Any:
    """Tables are read at the first positions, whichever are chosen."""

    def table(self: ChosenRows, node: ir.Node, place: int, rows: Rows) -> None:
        real(self, node, place, rows)
        read = node.inputs[place]
        assert read is not None
        gather = read.producer()
        while gather is not None and gather.op_type != "Gather":
            gather = gather.inputs[0].producer() if gather.inputs[0] is not None else None
        assert gather is not None
        touched.count += 1
        count = ir.node("CumSum", [_ones(self, gather), _one(self)], {"exclusive": 1})
        self.graph.insert_before(gather, count)
        gather.replace_input_with(1, count.outputs[0])

    return table


def _ones(rows: ChosenRows, at: ir.Node) -> ir.Value:
    """A one for each chosen position."""
    equal = ir.node("Equal", [rows.chosen, rows.chosen])
    number = ir.node("Cast", [equal.outputs[0]], {"to": ir.DataType.INT64.value})
    for node in (equal, number):
        rows.graph.insert_before(at, node)
    return number.outputs[0]


def _one(rows: ChosenRows) -> ir.Value:
    value = ir.Value(name="fault.one", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    value.const_value = ir.tensor(np.asarray(1, np.int64), name="fault.one")
    rows.graph.register_initializer(value)
    return value


def _beside(real: Any, touched: Touched) -> Any:
    """A step's rows are written where those before them stand."""

    def indices(self: ChosenRows, rows: Rows) -> ir.Value:
        touched.count += bool(rows.before)
        return self.chosen if not rows.before else real(self, replace(rows, before=0, after=1))

    return indices


def _crossed(model: ir.Model) -> int:
    """The keys of two blocks change places from step to step."""
    out = by_role(read_ports(model), KEPT, "out")
    pair = next([p, q] for p in out for q in out if p.name < q.name and p.shape == q.shape)
    mirrors = {pair[0].name: pair[1].mirror, pair[1].name: pair[0].mirror}
    ports = read_ports(model)
    write_ports(model, [replace(p, mirror=mirrors.get(p.name, p.mirror)) for p in ports])
    return 2


def _unread(real: Any, touched: Touched) -> Any:
    """Positions see those of their own step alone."""

    def keep(self: ChosenRows, value: ir.Value, *rest: Any) -> ir.Value:
        real(self, value, *rest)
        touched.count += 1
        return value

    return keep


def _forgotten(real: Any, touched: Touched) -> Any:
    """The engine reads zeros for what was kept."""

    def opened(*given: Any) -> Any:
        session = real(*given)

        class Session:
            """The same, but for what it reads."""

            def __getattr__(self, name: str) -> Any:
                return getattr(session, name)

            def run(self, names: Any, feed: Any) -> Any:
                held = [n for n in feed if n.startswith(f"{KEPT}.")]
                touched.count += len(held)
                return session.run(names, feed | {n: np.zeros_like(feed[n]) for n in held})

        return Session()

    return opened


ON, GRAFT = {"recipe": "recap"}, GRAFTS["canvas-cache"]
CANVASES = [
    Mutant("canvas-table-of-other-positions", "chosen-rows: tables", "tables are read in order",
           "maskgit", "kept-features", instead(ChosenRows, "_table", _in_order), ON),
    Mutant("canvas-rows-beside-their-own", "chosen-rows: indices", "written a row before",
           "maskgit", "kept-features", instead(ChosenRows, "_indices", _beside), ON),
    Mutant("canvas-kept-crossed", "canvas-cache", "keys of two blocks change places", "maskgit",
           "kept-features", after(GRAFT, _crossed), ON),
    Mutant("canvas-kept-unread", "chosen-rows: keep", "positions see their own step alone",
           "maskgit", "kept-features", instead(ChosenRows, "_keep", _unread), ON),
    Mutant("canvas-kept-forgotten", "ort: session", "what was kept is read as zeros", "maskgit",
           "light", instead(ort, "open_graph", _forgotten), ON),
]  # fmt: skip
