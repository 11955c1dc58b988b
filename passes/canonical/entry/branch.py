"""`If` nodes whose condition is a flag of the caller or a fixed fact: the branch that is taken.

Merged decoders hold two graphs of one model: one that continues a cache and one that starts from
nothing. graftline makes its own caches, so the branch that reads no cache is the host.
"""

from __future__ import annotations

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.meaning import label, scalar

_SAME = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"})


def take_branches(graph: ir.Graph) -> dict[ir.Value, bool]:
    """Inline the taken branch of every `If`; the flags among the graph's inputs, and their values.

    Raises NotApplicable for a condition that neither a flag nor a constant decides, and for two
    branches of which not exactly one reads a cache.
    """
    flags: dict[ir.Value, bool] = {}
    while (node := next((n for n in graph if n.op_type == "If"), None)) is not None:
        cond = _source(node.inputs[0])
        number = scalar(cond)
        if number is not None:
            _inline(graph, node, bool(number))
        elif cond is not None and cond in graph.inputs:
            if cond not in flags:
                flags[cond] = _starts(graph, node, cond)
            _inline(graph, node, flags[cond])
        else:
            raise NotApplicable(
                "control flow that depends on sizes or data is not supported: export with "
                "torch.onnx.export(dynamo=True), or a graph without If",
                [label(node)],
            )
    return flags


def _source(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and node.op_type in _SAME:
        value = node.inputs[0]
    return value


def _starts(graph: ir.Graph, node: ir.Node, flag: ir.Value) -> bool:
    """The value of the flag under which no cache is read."""
    caches = {
        v for v in graph.inputs
        if v.dtype is not None and v.dtype.is_floating_point()
        and v.shape is not None and len(v.shape) >= 3
    }  # fmt: skip
    reads = {taken: bool(caches & _read(_branch(node, taken))) for taken in (True, False)}
    if reads[True] == reads[False]:
        both = "both" if reads[True] else "neither"
        raise NotApplicable(
            f"input {flag.name} chooses between two graphs of which {both} read a cache: which one "
            "starts a text cannot be told; export one of them alone",
            [label(node)],
        )
    return reads[False]


def _branch(node: ir.Node, taken: bool) -> ir.Graph:
    return node.attributes["then_branch" if taken else "else_branch"].as_graph()


def _read(branch: ir.Graph) -> set[ir.Value]:
    """Everything a branch reads, inner branches and what they take from outside included."""
    found: set[ir.Value] = {v for v in branch.outputs}
    for node in branch.all_nodes():
        found.update(v for v in node.inputs if v is not None)
    return found


def _inline(graph: ir.Graph, node: ir.Node, taken: bool) -> None:
    branch = _branch(node, taken)
    outputs = list(branch.outputs)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        if name in graph.initializers:
            value.name = f"{name}.{'then' if taken else 'else'}"
        graph.register_initializer(value)
    for inner in list(branch):
        branch.remove(inner)
        graph.insert_before(node, inner)
    for old, new in zip(node.outputs, outputs, strict=True):
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    for inner in _branch(node, not taken).all_nodes():  # or what it reads would have two readers
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
    graph.remove(node, safe=True)
