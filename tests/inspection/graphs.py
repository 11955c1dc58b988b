"""Graphs to look at: from text, the same under other names, with many nodes, with hostile names."""

from __future__ import annotations

from random import Random

import onnx_ir as ir

HOSTILE = '</script><script>window.hit=1</script>"\'`<img src=x onerror="window.hit=1">${1}'
"""What a name may hold and a page must never run."""


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def renamed(model: ir.Model) -> ir.Model:
    """Other names for all nodes, inner values and initializers."""
    ends = {id(v) for v in (*model.graph.inputs, *model.graph.outputs)}
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
        for value in node.outputs:
            if id(value) not in ends:
                value.name = f"v{number}.{value.index()}"
    for number, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"w{number}"
    return model


def shuffled(model: ir.Model, seed: int = 0) -> ir.Model:
    """Another order of the nodes in which each still comes after what it reads."""
    random, graph = Random(seed), model.graph
    left = list(graph)
    placed: set[ir.Node] = set()
    order: list[ir.Node] = []
    while left:
        ready = [n for n in left if all(v is None or v.producer() is None or v.producer() in placed
                                        for v in n.inputs)]  # fmt: skip
        node = random.choice(ready)
        left.remove(node)
        placed.add(node)
        order.append(node)
    graph.remove(order)
    graph.extend(order)
    return model


def many(count: int) -> ir.Model:
    """A graph of `count` nodes, none of them in a block."""
    value = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes: list[ir.Node] = []
    last = value
    for number in range(count):
        operator = ("Relu", "Neg", "Abs", "Exp")[number * 7 % 4]
        nodes.append(ir.node(operator, [last], name=f"node {number}"))
        last = nodes[-1].outputs[0]
        last.name = f"value {number}"
    last.shape, last.type = value.shape, value.type
    return ir.Model(
        ir.Graph([value], [last], nodes=nodes, opset_imports={"": 24}, name="many"), ir_version=10
    )


def hostile() -> ir.Model:
    """Names, attributes and metadata that break out of a page which does not escape them."""
    model = many(3)
    for node in model.graph:
        node.name = HOSTILE
        node.metadata_props["graftline.made_by"] = HOSTILE
        node.metadata_props["graftline.role"] = HOSTILE
        node.attributes["note"] = ir.AttrString("note", HOSTILE)
    model.graph.inputs[0].name = HOSTILE
    model.graph.outputs[0].name = HOSTILE + "out"
    return model
