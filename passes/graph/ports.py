"""Values of a graph by the role and the owner of their ports, never by their names."""

from __future__ import annotations

import onnx_ir as ir

from graftline.owners import TARGET
from graftline.ports import Direction, Port, read_ports, slot_ports
from graftline.roles import Roles


def port_of(
    model: ir.Model, role: str, direction: Direction = "in", owner: str = TARGET
) -> Port | None:
    """The owner's port of that role, or None."""
    ports = (p for p in read_ports(model) if (p.role, p.direction) == (role, direction))
    return next((p for p in ports if p.owner == owner), None)


def input_of(model: ir.Model, role: str, owner: str = TARGET) -> ir.Value | None:
    """The graph input of that role, or None."""
    port = port_of(model, role, "in", owner)
    return None if port is None else value_of(model, port)


def roles_of(model: ir.Model, owner: str = TARGET) -> Roles:
    """The names of an owner's inputs and outputs by role."""
    return Roles.of(read_ports(model), owner)


def output_of(model: ir.Model, role: str, owner: str = TARGET) -> ir.Value | None:
    """The graph output of that role, or None."""
    port = port_of(model, role, "out", owner)
    return None if port is None else value_of(model, port)


def cache_of(model: ir.Model, owner: str = TARGET) -> ir.Value | None:
    """Any cache input of an owner, for its number of slots; None where it has none."""
    ports = slot_ports(read_ports(model), "in", owner)
    return value_of(model, ports[0]) if ports else None


def value_of(model: ir.Model, port: Port) -> ir.Value:
    """The graph input or output that a port stands for."""
    values = model.graph.inputs if port.direction == "in" else model.graph.outputs
    return next(v for v in values if v.name == port.name)


def lengths_of(model: ir.Model) -> dict[ir.Value, ir.Value]:
    """Every cache input, and the input that says from which slot on a step writes it."""
    inputs = {v.name: v for v in model.graph.inputs}
    ports = slot_ports(read_ports(model), "in")
    return {inputs[p.name]: inputs[p.valid_by] for p in ports if p.valid_by is not None}
