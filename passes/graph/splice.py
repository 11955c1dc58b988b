"""One graph written into another: its nodes, and those of its weights that are not there yet."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.weights import same_tensor


def splice(
    graph: ir.Graph, part: ir.Model, given: Mapping[str, ir.Value], prefix: str
) -> dict[str, ir.Value]:
    """Move the nodes of `part` to the end of `graph` and return its outputs by name; `part` is used
    up. `given` are the values that stand for its inputs. A weight that `graph` has under the same
    name is read from there; all other names get a prefix.
    """
    source = part.graph
    for value in list(source.inputs):
        name = value.name or ""
        if value.uses() and name not in given:
            raise NotApplicable(f"the graph has an input '{name}' that nothing is put in for")
        if name in given:
            value.replace_all_uses_with(given[name], replace_graph_outputs=True)
    taken = {v.name for v in graph.inputs} | {v.name for n in graph for v in n.outputs}
    for name, value in list(source.initializers.items()):
        known = graph.initializers.get(name)
        if known is not None and same_tensor(known, value):
            value.replace_all_uses_with(known, replace_graph_outputs=True)
            continue
        del source.initializers[name]
        value.name = f"{prefix}.{name}" if known is not None or name in taken else name
        graph.register_initializer(value)
    outputs = {value.name or "": value for value in source.outputs}
    kept = set(source.outputs)
    source.outputs.clear()
    nodes = list(source)
    source.remove(nodes)
    for node in nodes:
        node.name = f"{prefix}.{node.name}" if node.name else None
        for value in node.outputs:
            if value.name:
                value.name = f"{prefix}.{value.name}"
            if value not in kept and value.shape is not None and not value.shape.is_static():
                value.shape = None  # what stands for its inputs may be of other sizes
    graph.extend(nodes)
    return outputs
