"""Names of values: where a pass makes a name that the host has for another value, the host's value
is renamed. Ports are found by name and never are."""

from __future__ import annotations

import onnx_ir as ir

from graftline.passes.pipeline.graft import MADE_BY


def separate_names(graph: ir.Graph, by: str = "") -> None:
    """Give every value a name of its own: ports keep theirs, then what the pass `by` made, then
    weights, then the rest. Two values that `by` made under one name stay: a defect, which the law
    `wellformed` finds."""
    made = [(v, n.metadata_props.get(MADE_BY)) for n in graph for v in n.outputs if v.name]
    ports = list(dict.fromkeys([*graph.inputs, *graph.outputs]))
    own = [v for v, maker in made if by and maker == by]
    taken = {v.name for v in (*ports, *own)}
    settled = {*ports, *own}
    rest = [*list(graph.initializers.values()), *(v for v, _ in made)]
    for value in dict.fromkeys(rest):
        if value in settled:
            continue
        name = value.name or ""
        while name in taken:
            name += ".host"
        if name != value.name:
            _rename(graph, value, name)
        taken.add(name)


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Under its new name a weight is an initializer still."""
    held = value.name or ""
    if graph.initializers.get(held) is not value:
        value.name = name
        return
    del graph.initializers[held]
    value.name = name
    graph.register_initializer(value)
