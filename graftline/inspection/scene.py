"""One picture: a graph with what made it of another, in sections; equal blocks are drawn once.

A scene is plain data for the page (JSON): a section has nodes, pills (what it reads from outside
and gives to others) and edges between these by their numbers, nodes first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graftline.inspection.blocks import QUIET, maker
from graftline.inspection.diff import Diff, attribute_text
from graftline.inspection.diff_text import HOST, operator
from graftline.inspection.net import SMALL
from graftline.inspection.places import both_places, rank, span
from graftline.inspection.weight_table import WeightTable
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import Port, read_ports

UNNAMED = re.compile(r"None|unk__\d+")
"""A size that shape inference could not tell: each has a number of its own."""
LARGEST = 150
"""Nodes of a section: a place with more is cut into several."""
Json = dict[str, Any]


@dataclass
class Section:
    """A stretch of the graph as it is drawn; `form` is what it looks like, without names."""

    place: str
    nodes: list[Json] = field(default_factory=list[Json])
    pills: list[Json] = field(default_factory=list[Json])
    edges: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    forms: list[Hashable] = field(default_factory=list[Hashable])

    @property
    def form(self) -> Hashable:
        """Equal for sections that are drawn alike."""
        pills = tuple((p["side"], p["text"]) for p in self.pills)
        return tuple(self.forms), pills, tuple(self.edges)


class Scene:
    """Draws a diff: the nodes of `after`, and of `before` those that are removed."""

    def __init__(self, diff: Diff, weights: WeightTable) -> None:
        self._diff, self._weights = diff, weights
        self._where = both_places(diff)
        self._after = {a: b for a, b in diff.pairs}
        self._status = {n: "added" for n in diff.added} | {n: "removed" for n in diff.removed}
        self._lines = {c.after: c.lines for c in diff.changed}
        self._ports: dict[str, Port] = {}
        for model in (diff.before, diff.after):
            self._ports |= {p.name: p for p in read_ports(model)}
        self._places = sorted(set(self._where.values()), key=rank)
        self._stream = [p for p in self._places if p.isdecimal() or p in ("embedding", "head")]

    def data(self) -> Json:
        """The scene for the page."""
        sections = [part for place in self._places for part in self._sections(place)]
        same: dict[Hashable, list[Section]] = defaultdict(list)
        for number, one in enumerate(sections):
            numbered = one.place.isdecimal()
            same[(one.form, one.place.isdecimal()) if numbered else number].append(one)
        diff = self._diff
        changed = len(diff.changed)
        return {
            "sections": [_folded(these) for these in same.values()],
            "counts": {
                "added": len(diff.added), "removed": len(diff.removed), "changed": changed,
                "same": len(diff.pairs) - changed,
            },
            "told": diff.told,
            "graph": list(diff.graph),
        }  # fmt: skip

    def _sections(self, place: str) -> list[Section]:
        nodes = [n for n in (*self._diff.order, *self._diff.removed) if self._where[n] == place]
        return [
            self._section(place, nodes[at : at + LARGEST]) for at in range(0, len(nodes), LARGEST)
        ]

    def _section(self, place: str, nodes: Sequence[ir.Node]) -> Section:
        section = Section(place)
        numbers = {node: i for i, node in enumerate(nodes)}
        pills: dict[tuple[str, str], int] = {}
        for node, number in numbers.items():
            drawn = self._node(node)
            section.forms.append(tuple((key, repr(value)) for key, value in drawn.items()))
            section.nodes.append(drawn | self._named(node))
            gone = int(self._status.get(node) == "removed")
            for value in dict.fromkeys(v for v in node.inputs if v is not None):
                source = self._drawn(value.producer())
                if source in numbers:
                    section.edges.append((numbers[source], number, gone))
                elif (text := self._outside(value, source, place)) is not None:
                    key = ("in", text)
                    at = pills.setdefault(key, len(nodes) + len(pills))
                    section.edges.append((at, number, gone))
            for text in self._readers(node, place, numbers):
                at = pills.setdefault(("out", text), len(nodes) + len(pills))
                section.edges.append((number, at, gone))
        section.pills = [{"side": side, "text": text} for side, text in pills]
        return section

    def _drawn(self, node: ir.Node | None) -> ir.Node | None:
        """The node that is drawn for a node of either graph."""
        return None if node is None else self._after.get(node, node)

    def _outside(self, value: ir.Value, source: ir.Node | None, place: str) -> str | None:
        """What an input from outside the section is called; None for a weight or a constant."""
        if source is not None:
            return self._relation(self._where.get(source, "outside"), place, "before")
        if value.const_value is not None and not value.is_graph_input():
            return None
        return self._port(value.name or "")

    def _readers(
        self, node: ir.Node, place: str, numbers: Mapping[ir.Node, int]
    ) -> dict[str, None]:
        """What reads a node outside the section; several blocks together are one."""
        found: dict[str, None] = {}
        others: dict[str, None] = {}
        for value in node.outputs:
            if value.is_graph_output():
                found[self._port(value.name or "")] = None
            for reader in (self._drawn(use.node) for use in value.uses()):
                if reader is not None and reader not in numbers and reader in self._where:
                    others[self._where[reader]] = None
        blocks = [p for p in others if p.isdecimal() and not place.isdecimal()]
        if len(blocks) > 1:
            found[span(blocks)] = None
            others = dict.fromkeys(p for p in others if p not in blocks)
        return found | dict.fromkeys(self._relation(p, place, "after") for p in others)

    def _relation(self, other: str, place: str, side: str) -> str:
        """Another place, as seen from this one: the block before or after, or its name."""
        if other == place:
            return "the part before" if side == "before" else "the part after"
        if other in self._stream and place in self._stream:
            distance = self._stream.index(other) - self._stream.index(place)
            if abs(distance) == 1:
                return f"the block {'before' if distance < 0 else 'after'}"
            if other.isdecimal() and place.isdecimal():
                return f"{abs(distance)} blocks {'before' if distance < 0 else 'after'}"
        return span([other])

    def _port(self, name: str) -> str:
        """A port by its role, without its layer, so that equal blocks look equal."""
        port = self._ports.get(name)
        return name if port is None else port.role + (f" {port.tap}" if port.tap else "")

    def _node(self, node: ir.Node) -> Json:
        """A node for the page, without names; keys of what it lacks are absent."""
        told: Json = {
            "op": operator(node),
            "status": self._status.get(node) or ("changed" if node in self._lines else ""),
            "by": "" if maker(node) == HOST else maker(node),
            "role": node.metadata_props.get(ROLE, ""),
            "quiet": node.op_type in QUIET,
            "attributes": [[n, attribute_text(a)] for n, a in sorted(node.attributes.items())],
            "changes": list(self._lines.get(node, ())),
            "shapes": [_shaped(v) for v in node.outputs if v.name],
            "small": _small(node),
            "constants": [_constant(v) for v in node.inputs if v is not None and _is_constant(v)],
        }
        return {key: value for key, value in told.items() if value}

    def _named(self, node: ir.Node) -> Json:
        """The name of a node and its weights, each as a list that other blocks' are added to."""
        numbers = (self._weights.number(v) for v in node.inputs if v is not None)
        weights = [[number] for number in numbers if number is not None]
        names = [node.name or node.outputs[0].name or ""]
        return {"names": names, "weights": weights} if weights else {"names": names}


def _folded(same: Sequence[Section]) -> Json:
    """Equal sections as one: its nodes have the names and the weights of all of them."""
    first = same[0]
    for other in same[1:]:
        for node, more in zip(first.nodes, other.nodes, strict=True):
            node["names"] += more["names"]
            for mine, theirs in zip(node.get("weights", ()), more.get("weights", ()), strict=False):
                mine += theirs
    return {
        "title": span([s.place for s in same]),
        "places": [s.place for s in same],
        "nodes": first.nodes,
        "pills": first.pills,
        "edges": first.edges,
    }


def _shaped(value: ir.Value) -> str:
    kind = "" if value.dtype is None else str(value.dtype).lower()
    if value.shape is None:
        return f"{kind} of unknown shape".strip()
    sizes = ("?" if UNNAMED.fullmatch(str(d)) else str(d) for d in value.shape)
    return f"{kind} [{', '.join(sizes)}]"


def _is_constant(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.nbytes <= SMALL and not value.is_graph_input()


def _constant(value: ir.Value) -> str:
    tensor = value.const_value
    assert tensor is not None, "asked of constants only"
    numbers = tensor.numpy()
    shape = ", ".join(map(str, tensor.shape))
    return str(numbers.tolist()) if numbers.size <= 8 else f"{tensor.dtype} [{shape}]".lower()


def _small(node: ir.Node) -> str:
    """The second line of a node: the shape of the largest weight it reads."""
    tensors = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    largest = max((t for t in tensors if t.nbytes > SMALL), key=lambda t: t.nbytes, default=None)
    return "" if largest is None else " × ".join(str(d) for d in largest.shape)
