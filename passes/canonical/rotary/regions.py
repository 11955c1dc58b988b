"""Where heads are turned: the nodes between a projected head and attention that read positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from graftline.passes.canonical.attention.moves import single_source
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.meaning import label_value
from graftline.passes.graph.mismatch import Mismatch

_LINEAR = frozenset(
    [
        "Mul",
        "Add",
        "Sub",
        "Neg",
        "Concat",
        "Slice",
        "Split",
        "Reshape",
        "Transpose",
        "Unsqueeze",
        "Squeeze",
        "Cast",
        "Gather",
        "Expand",
        "Where",
        "ScatterElements",
        "ScatterND",
        "Identity",
        "RotaryEmbedding",
        "Div",
        "Tile",
    ]
)


@dataclass
class Region:
    """Nodes from a position-free head `x` to `out`, and the position-dependent values they read:
    none where the head is not turned, and is `x` itself."""

    x: ir.Value
    out: ir.Value
    nodes: list[ir.Node]
    angles: list[ir.Value]
    """Weight-free values with one row per position."""


@dataclass
class Regions:
    """Finds such regions in one graph."""

    graph: ir.Graph
    measures: Measures
    hidden: set[ir.Value]
    order: dict[ir.Node | None, float] = field(default_factory=dict[ir.Node | None, float])

    def __post_init__(self) -> None:
        self.order = {node: i for i, node in enumerate(self.graph)}

    def follow(self, made: ir.Node | None, at: ir.Node) -> None:
        """Learn of a node written right before `at` after the graph was read."""
        self.order[made] = self.order[at] - 0.5

    def region(self, head: ir.Value) -> Region | Mismatch:
        """The nodes that turn `head` [B, heads, N, D]."""
        inside, todo = set[ir.Node](), [head]
        while todo:
            node = todo.pop().producer()
            if node is None or node in inside or node.op_type not in _LINEAR:
                continue
            inside.add(node)
            todo.extend(v for v in node.inputs if v is not None and v in self.hidden)
        ordered = sorted(inside, key=lambda n: self.order.get(n, -1))
        turned, angles = set[ir.Value](), dict[ir.Value, None]()
        for node in ordered:
            own = [v for v in node.inputs if v is not None and self._is_angle(v)]
            if node.op_type == "RotaryEmbedding" and len(node.inputs) > 3:
                own += [v for v in node.inputs[3:4] if v is not None]
            angles.update(dict.fromkeys(own))
            if own or any(v in turned for v in node.inputs if v is not None):
                turned.update(node.outputs)
        if head not in turned:
            return Region(head, head, [], [])
        x = self._entry(ordered, turned)
        if isinstance(x, Mismatch):
            return x
        nodes = self._between(x, head)
        return nodes if isinstance(nodes, Mismatch) else Region(x, head, nodes, list(angles))

    def _is_angle(self, value: ir.Value) -> bool:
        if value in self.hidden or value.const_value is not None:
            return False
        kind = value.dtype
        if kind is not None and not kind.is_floating_point() and kind != ir.DataType.BOOL:
            return False
        dims = self.measures.dims(value)
        return dims is not None and "N" in dims

    def _entry(self, ordered: list[ir.Node], turned: set[ir.Value]) -> ir.Value | Mismatch:
        """The nearest value [B, heads, N, D] through which everything enters that gets turned."""
        front = {
            v for n in ordered if n.outputs[0] in turned
            for v in n.inputs if v is not None and v in self.hidden and v not in turned
        }  # fmt: skip
        while True:
            if len(front) == 1:
                value = next(iter(front))
                if self._is_heads(value):
                    return value
            latest = max(front, key=self._place)
            source = self._through(latest)
            if isinstance(source, Mismatch):
                why = "a rotary embedding does not start from one value [B, heads, N, D]"
                others = [label_value(v) for v in front if v is not latest]
                return Mismatch(source.node, f"{why}: {source.reason}", tuple(others))
            front.discard(latest)
            front.update(source)

    def _place(self, value: ir.Value) -> float:
        node = value.producer()
        return self.order.get(node, -1) if node is not None else -1

    def _through(self, value: ir.Value) -> list[ir.Value] | Mismatch:
        """Activations that the data-moving node above a value reads."""
        node = value.producer()
        if node is None:
            return Mismatch.at(value, "is an input")
        if node.op_type in ("Concat", "Add", "Sub"):
            sources = [v for v in node.inputs if v is not None]
            if all(v in self.hidden for v in sources):
                return sources
            return Mismatch.at(node, "combines heads with what is no activation")
        source = single_source(node, self.hidden, self.measures)
        return source if isinstance(source, Mismatch) else [source]

    def _is_heads(self, value: ir.Value) -> bool:
        dims = self.measures.dims(value)
        return (
            dims is not None and len(dims) == 4 and dims[0] == "B"
            and "N" in dims[1:3] and isinstance(dims[3], int)
        )  # fmt: skip

    def _between(self, x: ir.Value, head: ir.Value) -> list[ir.Node] | Mismatch:
        """The nodes between, all of which are linear in the head."""
        found, todo = set[ir.Node](), [head]
        while todo:
            value = todo.pop()
            node = value.producer()
            if value is x or node is None or node in found:
                continue
            if node.op_type not in _LINEAR:
                return Mismatch.at(node, "a rotary embedding mixes in another value")
            found.add(node)
            todo.extend(v for v in node.inputs if v is not None and v in self.hidden)
        return sorted(found, key=lambda n: self.order.get(n, -1))
