"""A graph without names: its nodes by number, what each reads, and who reads it."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graftline.ports import Port, read_ports
from graftline.tensors import Stacked, Widened, origin

SMALL = 1024
"""Bytes up to which a constant is part of what a node is; larger ones are weights."""
Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Source:
    """What one input of a node reads: output `output` of node `node`, a `port` of the graph, a
    `constant` or a weight (`value`), or nothing."""

    kind: Literal["node", "port", "constant", "weight", "none"]
    node: int = -1
    output: int = 0
    key: Key = ()
    """Of a port: what it is; of a constant its type, shape and bytes; of a weight type and shape.
    """
    value: ir.Value | None = None

    @property
    def tensor(self) -> ir.TensorProtocol:
        """Of a constant or a weight: its numbers."""
        tensor = None if self.value is None else self.value.const_value
        assert tensor is not None, f"a {self.kind} has no numbers"
        return tensor


NOTHING = Source("none")


class Net:
    """The nodes of a graph as they stand there, with their sources and readers.

    Ports are told apart by role, owner and layer where `roles`, else by name. What the body of an
    If or a Loop reads from outside counts as further inputs of the node.
    """

    def __init__(self, model: ir.Model, roles: bool) -> None:
        self.model = model
        self.nodes = list(model.graph)
        self.ports = dict(_port_keys(model, roles))
        numbers = {v: (i, o) for i, n in enumerate(self.nodes) for o, v in enumerate(n.outputs)}
        self._numbers = numbers
        self.labels: list[Hashable] = []
        """What each node is by itself: operator, attributes and constants, sizes of weights."""
        self.exact: list[Hashable] = []
        """The same, with where its weights lie."""
        self.sources: list[tuple[Source, ...]] = []
        for node in self.nodes:
            outer: list[ir.Value] = []
            form = node_form(node, outer)
            sources = tuple(self._source(v) for v in (*node.inputs, *outer))
            self.sources.append(sources)
            kinds = tuple((s.kind, s.key) for s in sources)
            self.labels.append((form, kinds))
            self.exact.append((form, kinds, tuple(place_of(s) for s in sources)))
        self.readers: list[list[tuple[int, int, int]]] = [[] for _ in self.nodes]
        """Of each node: which output is read by which node as which input."""
        for reader, sources in enumerate(self.sources):
            for slot, source in enumerate(sources):
                if source.kind == "node":
                    self.readers[source.node].append((source.output, reader, slot))
        self.outputs = {self.ports[id(v)]: self._source(v) for v in model.graph.outputs}

    def order(self) -> list[int]:
        """All nodes, each after what it reads, by the order of outputs and inputs alone."""
        placed, order = set[int](), list[int]()
        starts = [s.node for s in self.outputs.values() if s.kind == "node"]
        for start in (*starts, *range(len(self.nodes))):
            stack = [(start, 0)]
            while stack:
                node, slot = stack.pop()
                if node in placed:
                    continue
                reads = [s.node for s in self.sources[node] if s.kind == "node"]
                if slot < len(reads):
                    stack += [(node, slot + 1), (reads[slot], 0)]
                else:
                    placed.add(node)
                    order.append(node)
        return order

    def _source(self, value: ir.Value | None) -> Source:
        if value is None:
            return NOTHING
        if value in self._numbers:
            return Source("node", *self._numbers[value])
        tensor = value.const_value
        if tensor is None or id(value) in self.ports:
            return Source("port", key=self.ports.get(id(value), ("name", value.name)))
        typed = (str(tensor.dtype), tuple(tensor.shape.numpy()))
        if tensor.nbytes <= SMALL:
            return Source("constant", key=(*typed, tensor.tobytes()), value=value)
        return Source("weight", key=typed, value=value)


def _port_keys(model: ir.Model, roles: bool) -> Iterator[tuple[int, Key]]:
    known: Mapping[tuple[str, str], Port] = {(p.name, p.direction): p for p in read_ports(model)}
    for direction, values in (("in", model.graph.inputs), ("out", model.graph.outputs)):
        seen: dict[Key, int] = {}
        for value in values:
            port = known.get((value.name or "", direction))
            key: Key = (direction, value.name)
            if roles and port is not None:
                key = (direction, port.owner, port.role, port.layer, port.tap)
            seen[key] = seen.get(key, -1) + 1
            yield id(value), (*key, seen[key])


def place_of(source: Source) -> Hashable:
    """Where the bytes of a weight lie, so that two graphs over one file are seen to share them."""
    return place(source.tensor) if source.kind == "weight" else None


def place(tensor: ir.TensorProtocol) -> Hashable:
    """Where the bytes of a tensor lie: links to one file are one place."""
    if isinstance(tensor, ir.ExternalTensor):
        file = _file(str(tensor.path))
        return origin(tensor) if file is None else (*file, tensor.offset, tensor.nbytes)
    if isinstance(tensor, Widened):
        return tensor.dtype, place(tensor.narrow)
    if isinstance(tensor, Stacked):
        return tuple(place(part) for part in tensor.parts)
    return id(tensor)


def _file(path: str) -> tuple[int, int] | None:
    """The disk and the number of a file; None where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def node_form(node: ir.Node, outer: list[ir.Value]) -> Hashable:
    """Operator and attributes of a node, without names; what its bodies read from outside is added
    to `outer`."""
    attributes = sorted((name, attribute_form(a, outer)) for name, a in node.attributes.items())
    return node.domain, node.op_type, node.overload, tuple(attributes)


def attribute_form(attribute: ir.Attr, outer: list[ir.Value]) -> Any:
    """The type and the value of an attribute."""
    kind, value = attribute.type.name, attribute.value
    if attribute.is_ref():
        return kind, "ref", attribute.ref_attr_name
    if attribute.type == ir.AttributeType.GRAPH:
        return kind, body_form(value, outer)
    if attribute.type == ir.AttributeType.GRAPHS:
        return kind, tuple(body_form(graph, outer) for graph in value)
    if attribute.type == ir.AttributeType.TENSOR:
        return kind, str(value.dtype), tuple(value.shape.numpy()), value.tobytes()
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return kind, np.asarray(value, dtype=np.float32).tobytes()
    return kind, repr(value)


def body_form(body: ir.Graph | ir.Function, outer: list[ir.Value]) -> Hashable:
    """A graph within a node, or a function, as nested operators; values from outside are numbered
    in the order of their first use."""
    forms: dict[ir.Value, Hashable] = {v: ("argument", i) for i, v in enumerate(body.inputs)}
    for value in getattr(body, "initializers", dict[str, ir.Value]()).values():
        tensor = value.const_value
        assert tensor is not None, "an initializer of a body has a value"
        forms[value] = str(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes()
    numbers: dict[Hashable, int] = {}

    def form(value: ir.Value | None) -> Hashable:
        if value is not None and value not in forms:
            if value not in outer:
                outer.append(value)
            forms[value] = ("outside", outer.index(value))
        return None if value is None else forms[value]

    used: list[int] = []
    for node in body:
        inner: list[ir.Value] = []
        whole = node_form(node, inner), tuple(form(v) for v in (*node.inputs, *inner))
        number = numbers.setdefault(whole, len(numbers))
        used.append(number)
        forms |= {v: ("node", number, i) for i, v in enumerate(node.outputs)}
    return tuple(numbers), tuple(sorted(used)), tuple(form(v) for v in body.outputs)
