"""What differs between two graphs: nodes added, removed and changed, ports, operators' versions.

Names and numbers of nodes and values say nothing here: a graph whose nodes were renamed and
reordered is equal to itself. The names of its inputs and outputs are its interface, and count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.errors import CheckpointError
from graftline.inspection.matching import Matching
from graftline.inspection.net import Key, Net, Source, attribute_form, body_form, place
from graftline.ports import read_ports
from graftline.tensors import numbers

LONGEST = 48
"""Characters of a value that a line of a diff shows."""


@dataclass(frozen=True)
class Change:
    """A node that is in both graphs, and how it differs, a line each."""

    before: ir.Node
    after: ir.Node
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Diff:
    """What makes the graph `after` of `before`. `pairs` are the nodes in both, those of `changed`
    among them; `graph` are differences of the graphs as a whole, a line each. `order` are all nodes
    of `after`, each behind what it reads, in an order that does not hang on the file's."""

    before: ir.Model
    after: ir.Model
    pairs: tuple[tuple[ir.Node, ir.Node], ...]
    added: tuple[ir.Node, ...]
    removed: tuple[ir.Node, ...]
    changed: tuple[Change, ...]
    graph: tuple[str, ...]
    order: tuple[ir.Node, ...]

    @property
    def equal(self) -> bool:
        """Whether both compute the same by the same nodes, through the same ports."""
        return not (self.added or self.removed or self.changed or self.graph)

    @property
    def told(self) -> str:
        """In one line: "3 nodes added, 1 removed, 2 changed, 60 the same"."""
        if self.equal:
            return f"equal: {len(self.pairs)} nodes"
        same = len(self.pairs) - len(self.changed)
        counts = (len(self.added), "added"), (len(self.removed), "removed")
        told = [f"{n} {what}" for n, what in (*counts, (len(self.changed), "changed")) if n]
        return ", ".join([*told, f"{same} nodes the same"])


def compare(before: ir.Model, after: ir.Model) -> Diff:
    """The difference of two graphs. Raises CheckpointError where weights that must be compared
    cannot be read."""
    roles = bool(read_ports(before)) and bool(read_ports(after))
    nets = Net(before, roles), Net(after, roles)
    match = Matching(*nets)
    changed = [
        Change(nets[0].nodes[a], nets[1].nodes[b], lines)
        for a, b in match.pairs.items()
        if (lines := tuple(_changes(match, a, b)))
    ]
    return Diff(
        before,
        after,
        tuple((nets[0].nodes[a], nets[1].nodes[b]) for a, b in match.pairs.items()),
        tuple(n for i, n in enumerate(nets[1].nodes) if i not in match.back),
        tuple(nets[0].nodes[i] for i in nets[0].order() if i not in match.pairs),
        tuple(changed),
        tuple(_of_graphs(match)),
        tuple(nets[1].nodes[i] for i in nets[1].order()),
    )


def alone(model: ir.Model) -> Diff:
    """A graph beside itself: nothing differs."""
    net = Net(model, roles=False)
    order = tuple(net.nodes[i] for i in net.order())
    return Diff(model, model, tuple((n, n) for n in order), (), (), (), (), order)


def _changes(match: Matching, one: int, other: int) -> Iterator[str]:
    a, b = match.before.nodes[one], match.after.nodes[other]
    yield from _attributes(a, b)
    mine, theirs = match.before.sources[one], match.after.sources[other]
    for slot in range(max(len(mine), len(theirs))):
        read = [s[slot] if slot < len(s) else Source("none") for s in (mine, theirs)]
        if read[0].kind == read[1].kind == "node":
            same = match.pairs.get(read[0].node) == read[1].node
            if same and read[0].output == read[1].output:
                continue
        elif (read[0].kind, read[0].key) == (read[1].kind, read[1].key):
            if read[0].kind == "weight" and not _same_weight(read[0], read[1]):
                yield f"input {slot}: other values of the weight {_typed(read[1].key)}"
            continue
        told = (_told(net, s) for net, s in zip((match.before, match.after), read, strict=True))
        yield f"input {slot}: {' → '.join(told)}"


def _attributes(a: ir.Node, b: ir.Node) -> Iterator[str]:
    for name in sorted({*a.attributes, *b.attributes}):
        found = a.attributes.get(name), b.attributes.get(name)
        forms = [None if f is None else attribute_form(f, []) for f in found]
        if forms[0] != forms[1]:
            told = ("absent" if f is None else attribute_text(f) for f in found)
            yield f"{name}: {' → '.join(told)}"


def attribute_text(attribute: ir.Attr) -> str:
    """The value of an attribute, in a few words."""
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        graphs: Any = attribute.value
        graphs = [graphs] if attribute.type == ir.AttributeType.GRAPH else graphs
        return " and ".join(f"a graph of {len(graph)} nodes" for graph in graphs)
    if attribute.type == ir.AttributeType.TENSOR:
        tensor: Any = attribute.value
        if tensor.size > 8:
            return _typed((str(tensor.dtype), tuple(tensor.shape.numpy())))
        return _short(str(tensor.numpy().tolist()))
    value: Any = attribute.ref_attr_name if attribute.is_ref() else attribute.value
    return _short(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _told(net: Net, source: Source) -> str:
    """What an input reads, in words."""
    if source.kind == "node":
        node = net.nodes[source.node]
        output = f" (output {source.output})" if source.output else ""
        return node.op_type + output
    if source.kind == "port":
        return f"the input {_port_text(source.key)}"
    if source.kind == "constant":
        values = source.tensor.numpy()
        if values.size <= 8:
            return _short(str(values.tolist()))
        return f"a constant {_typed(source.key)}"
    return f"a weight {_typed(source.key)}" if source.kind == "weight" else "nothing"


def _port_text(key: Key) -> str:
    if len(key) == 3:
        return str(key[1])
    _, owner, role, layer, tap, _ = key
    parts = [role, *(str(p) for p in (layer, tap) if p is not None)]
    return ".".join(map(str, parts)) + ("" if owner == "target" else f" of {owner}")


def _typed(key: Key) -> str:
    kind, shape = key[:2]
    sizes: Any = shape
    return f"{str(kind).lower()} [{', '.join(map(str, sizes))}]"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _same_weight(one: Source, other: Source) -> bool:
    """Whether two weights of one type and shape hold the same bytes, which are read only where they
    do not lie in the same place."""
    a, b = one.tensor, other.tensor
    return place(a) == place(b) or np.array_equal(_bytes(a), _bytes(b))


def _bytes(tensor: ir.TensorProtocol) -> Any:
    if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).is_file():
        raise CheckpointError(
            f"the weight {tensor.name} lies in {tensor.path}, which is not there; put the file "
            "beside the graph, or compare bundles as they were made"
        )
    try:
        return np.ascontiguousarray(numbers(tensor)).reshape(-1).view(np.uint8)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the weight {tensor.name} cannot be read ({error}); make the graph again"
        ) from error


def _of_graphs(match: Matching) -> Iterator[str]:
    """Ports, versions of operator sets, and functions."""
    before, after = match.before, match.after
    sides = [{p: v for v, p in _interface(net)} for net in (before, after)]
    for key in sides[0] | sides[1]:
        direction = "input" if key[0] == "in" else "output"
        known = [side.get(key) for side in sides]
        if known[0] != known[1]:
            told = " → ".join(one or "absent" for one in known)
            yield f"{direction} {_port_text(key)}: {told}"
    for key, mine in before.outputs.items():
        theirs = after.outputs.get(key)
        if theirs is not None and _end(match, mine) != (theirs.kind, theirs.node, theirs.output):
            told = f"{_told(before, mine)} → {_told(after, theirs)}"
            yield f"output {_port_text(key)} comes from another node: {told}"
    versions = before.model.opset_imports, after.model.opset_imports
    for domain in sorted({*versions[0], *versions[1]}):
        found = [v.get(domain) for v in versions]
        if found[0] != found[1]:
            told = " → ".join("absent" if version is None else str(version) for version in found)
            yield f"operator set {domain or 'ai.onnx'}: {told}"
    functions = before.model.functions, after.model.functions
    for name in sorted({*functions[0], *functions[1]}):
        forms = [None if name not in f else body_form(f[name], []) for f in functions]
        if forms[0] != forms[1]:
            what = "added" if forms[0] is None else "removed" if forms[1] is None else "changed"
            yield f"function {'::'.join(part for part in name if part)}: {what}"


def _end(match: Matching, source: Source) -> tuple[str, int, int]:
    """Where an output of the graph before would come from in the graph after."""
    node = match.pairs.get(source.node, -2) if source.kind == "node" else source.node
    return source.kind, node, source.output


def _interface(net: Net) -> Iterator[tuple[str, Key]]:
    """Every port in words: its name, type and shape."""
    graph = net.model.graph
    for value in (*graph.inputs, *graph.outputs):
        kind = "" if value.dtype is None else str(value.dtype).lower()
        shape = "" if value.shape is None else f" [{', '.join(map(str, value.shape))}]"
        yield f"{value.name} {kind}{shape}", net.ports[id(value)]
