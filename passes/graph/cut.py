"""Taking parts of a graph away: readers handed over, ports removed, and what nobody reads then."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.emit import drop_unused
from graftline.ports import read_ports, slot_ports, write_ports


def hand_over(old: ir.Value, new: ir.Value) -> None:
    """Whoever reads `old` reads `new`."""
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)


def keep_outputs(model: ir.Model, names: Iterable[str]) -> None:
    """Remove all other outputs, and what only they needed."""
    wanted, graph = set(names), model.graph
    for value in [v for v in graph.outputs if v.name not in wanted]:
        graph.outputs.remove(value)
    drop_unused(model)


def drop_ports(model: ir.Model, names: Collection[str]) -> None:
    """Remove inputs and outputs, their ports, and nodes and weights that nothing reads any more."""
    graph = model.graph
    keep_outputs(model, [v.name or "" for v in graph.outputs if v.name not in names])
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]
    for unread in [value for value in graph.inputs if value.name in names]:
        graph.inputs.remove(unread)
    write_ports(model, [p for p in read_ports(model) if p.name not in names])


def elements(model: ir.Model) -> int:
    """Numbers in the weights, as `Facts.parameters` counts them."""
    tensors = [v.const_value for v in model.graph.initializers.values()]
    sizes = [math.prod(map(int, t.shape)) for t in tensors if t is not None]  # type: ignore[arg-type]
    return sum(size for size in sizes if size > 1)


def sizes_of_caches(
    model: ir.Model, gone: Collection[str], who: str
) -> list[tuple[ir.Node, ir.Value]]:
    """Nodes that ask a cache that goes for its shape, its slots say, and one like it that stays.
    Raises NotApplicable where there is none."""
    inputs = {v.name: v for v in model.graph.inputs}
    ports = slot_ports(read_ports(model), "in")
    found: list[tuple[ir.Node, ir.Value]] = []
    for port in [p for p in ports if p.name in gone]:
        alike = [
            p for p in ports if p.name not in gone and (p.role, p.shape) == (port.role, port.shape)
        ]
        for node in inputs[port.name].consumers():
            if node.op_type == "Shape" and alike:
                found.append((node, inputs[alike[0].name]))
            elif node.op_type == "Shape":
                why = f"the graph counts slots by {port.name}, and no cache of its shape is left"
                raise NotApplicable(f"{who}: {why}; keep the attention of block {port.layer}")
    return found
