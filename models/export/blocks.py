"""Find the blocks of an exported decoder, and say when two compute the same thing.

A block is the part of the graph between two cuts of the residual stream. A cut is a value that
every path from the embedding to the logits passes through (a dominator) and that separates the
weights of one layer from those of the next.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from graftline.errors import NotApplicable


@dataclass(frozen=True)
class Irregular:
    """Why the layers of a graph are not copies of a few of them, and the weights or nodes looked
    at: it must be exported whole."""

    reason: str
    looked_at: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.reason + (f" ({', '.join(self.looked_at[:4])})" if self.looked_at else "")


@dataclass(frozen=True)
class Block:
    """Nodes between the residual stream values `entry` and `exit`, in graph order."""

    layer: int
    entry: ir.Value
    exit: ir.Value
    nodes: tuple[ir.Node, ...]


GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class Layers:
    """Reads layer numbers off weight names: `<path>.<number>.<rest>`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._pattern = re.compile(re.escape(path) + r"\.(\d+)\.")

    def of(self, name: str | None) -> int | None:
        """The layer an initializer belongs to, or None."""
        match = self._pattern.match(name or "")
        return int(match.group(1)) if match else None

    def rename(self, name: str, layer: int) -> str:
        """The same weight of another layer."""
        return self._pattern.sub(f"{self.path}.{layer}.", name, count=1)

    def suffix(self, name: str) -> str:
        """The name within the layer."""
        return self._pattern.sub("", name, count=1)


def blocks(model: ir.Model, path: str, layers: int) -> list[Block] | Irregular:
    """The blocks of the first `layers` layers. Raises NotApplicable for a graph that is none of a
    decoder."""
    names = Layers(path)
    stream, seen = _stream(model), _weights_seen(model, names)
    bare = [f"{path}.{i}" for i in range(layers) if i not in seen.by_layer]
    if bare:
        return Irregular("a layer reads no weights of its own", tuple(bare))
    cuts: list[ir.Value] = []
    for layer in range(layers + 1):
        if (cut := _cut(stream, seen, layer)) is None:
            return Irregular(f"no value separates layer {layer} from the layers before it")
        cuts.append(cut)
    found: list[Block] = []
    for layer in range(layers):
        block = _block(model, names, layer, cuts[layer], cuts[layer + 1])
        if isinstance(block, Irregular):
            return block
        found.append(block)
    return found


@dataclass(frozen=True)
class Seen:
    """Bit sets of layer weights: those each value depends on, and those of each layer."""

    by_value: dict[ir.Value, int]
    by_layer: dict[int, int]


def _weights_seen(model: ir.Model, names: Layers) -> Seen:
    by_value: dict[ir.Value, int] = {}
    by_layer: dict[int, int] = {}
    for bit, value in enumerate(model.graph.initializers.values()):
        layer = names.of(value.name)
        if layer is not None and value.uses():
            by_value[value] = 1 << bit
            by_layer[layer] = by_layer.get(layer, 0) | 1 << bit
    for node in model.graph:
        union = 0
        for value in node.inputs:
            union |= 0 if value is None else by_value.get(value, 0)
        for out in node.outputs:
            by_value[out] = union
    return Seen(by_value, by_layer)


def _stream(model: ir.Model) -> list[ir.Value]:
    """Values every path from the first layer-dependent input to the logits crosses, in order."""
    token_like = model.graph.inputs[0]
    graph = nx.DiGraph()
    graph.add_node(token_like)
    for node in model.graph:
        for out in node.outputs:
            for value in node.inputs:
                if value is not None and node.op_type not in ("Shape", "Size"):
                    graph.add_edge(value, out)
    logits = model.graph.outputs[0]
    if not nx.has_path(graph, token_like, logits):
        raise NotApplicable("the logits do not depend on the tokens", [str(token_like.name)])
    above = nx.immediate_dominators(graph, token_like)
    chain: list[ir.Value] = [logits]
    while chain[-1] is not token_like:
        chain.append(above[chain[-1]])
    return chain[::-1]


def _cut(stream: list[ir.Value], seen: Seen, layer: int) -> ir.Value | None:
    """The dominator that depends on all weights of the layers before `layer`, and on no other.

    The first one after each layer; before layer 0 the last one, so that whatever is done to the
    embedding once (scale, add positions, normalise) stays out of the blocks.
    """
    before = 0
    for index in range(layer):
        before |= seen.by_layer.get(index, 0)
    order = stream if layer else reversed(stream)
    for value in order:
        if value.producer() is not None and seen.by_value[value] == before and _is_state(value):
            return value
    return None


def _is_state(value: ir.Value) -> bool:
    """A hidden state [B, N, H], unlike token ids or flattened rows."""
    return (
        value.dtype is not None
        and value.dtype.is_floating_point()
        and value.shape is not None
        and len(value.shape) == 3
    )


def _block(
    model: ir.Model, names: Layers, layer: int, entry: ir.Value, end: ir.Value
) -> Block | Irregular:
    inside: set[ir.Node] = set()
    moves: dict[ir.Value, bool] = {entry: True}
    for value in model.graph.initializers.values():
        moves[value] = names.of(value.name) == layer
    above = _ancestors(end, entry)
    nodes: list[ir.Node] = []
    for node in model.graph:
        if node not in above:
            continue
        own = any(moves.get(v, False) for v in node.inputs if v is not None)
        for out in node.outputs:
            moves[out] = own
        if own:
            inside.add(node)
            nodes.append(node)
    for node in nodes:
        if inner := [name for name, a in node.attributes.items() if a.type in GRAPHS]:
            reason = f"layer {layer} holds a sub-graph in '{inner[0]}'"
            return Irregular(reason, (str(node.name),))
        for out in node.outputs:
            stray = [u for u, _ in out.uses() if u not in inside]
            if stray and out is not end:
                readers = tuple(str(n.name) for n in stray)
                return Irregular(f"layer {layer} is read from outside itself", readers)
    return Block(layer, entry, end, tuple(nodes))


def _ancestors(end: ir.Value, entry: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    todo = [end]
    while todo:
        value = todo.pop()
        node = value.producer()
        if value is entry or node is None or node in found:
            continue
        found.add(node)
        todo.extend(v for v in node.inputs if v is not None)
    return found


def form(block: Block, path: str) -> list[Hashable]:
    """What a block computes, free of value names and layer number: equal forms are isomorphic.

    Operators, attributes and wiring in order of discovery from the exit; weights by their name
    within the layer, shape and dtype; values from outside by identity, constants by content.
    """
    names = Layers(path)
    number: dict[ir.Node, int] = {}
    rows: list[Hashable] = []
    members = set(block.nodes)

    def reference(value: ir.Value | None) -> Hashable:
        if value is None:
            return None
        if value is block.entry:
            return "entry"
        node = value.producer()
        if node in members:
            return number[node], value.index()
        if value.is_initializer():
            return _constant(value, names)
        return "shared", id(value)

    for node in _discovery(block):
        number[node] = len(number)
        attributes = tuple(sorted((k, str(a.type), _plain(a)) for k, a in node.attributes.items()))
        wires = tuple(reference(v) for v in node.inputs)
        rows.append((node.domain, node.op_type, attributes, wires, len(node.outputs)))
    return rows


def _discovery(block: Block) -> list[ir.Node]:
    """The nodes of a block, inputs before users, in an order that follows from the wiring alone."""
    members, done, order = set(block.nodes), set[ir.Node](), list[ir.Node]()
    last = block.exit.producer()
    assert last is not None
    stack: list[tuple[ir.Node, bool]] = [(last, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
            continue
        if node in done:
            continue
        done.add(node)
        stack.append((node, True))
        sources = [v.producer() for v in node.inputs if v is not None and v is not block.entry]
        stack.extend((n, False) for n in reversed(sources) if n in members)
    return order


def _constant(value: ir.Value, names: Layers) -> Hashable:
    assert value.name is not None
    if names.of(value.name) is not None:
        return "weight", names.suffix(value.name), str(value.shape), value.dtype
    if value.const_value is None or isinstance(value.const_value, ir.LazyTensor):
        return "weight", value.name
    tensor = value.const_value
    return "constant", str(tensor.shape), tensor.dtype, tensor.tobytes()


def _plain(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape} {tensor.tobytes()!r}"
    return repr(attribute.value)
