"""A stamped graph as people read it: one line per block, and the nodes of one block."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graftline.errors import GraftlineError, nearest
from graftline.facts import FACTS_KEY
from graftline.inspection.opening import read_graph
from graftline.kinds import kind_of
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.masks import MASK_KEY
from graftline.passes.pipeline.graft import BLOCK, MADE_BY, ROLE
from graftline.ports import read_ports

QUIET = frozenset({"Constant", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Shape"})
"""Operators a picture leaves out: they move data and compute nothing."""


@dataclass(frozen=True)
class Block:
    """A stretch of the graph: a numbered block, "embedding", "head" or "shared"."""

    name: str
    nodes: tuple[ir.Node, ...]

    @property
    def picture(self) -> str:
        """The block in one line: its operators in order, equal neighbours counted."""
        parts: list[tuple[str, int]] = []
        for label in (_label(n) for n in self.nodes if n.op_type not in QUIET):
            if parts and parts[-1][0] == label:
                parts[-1] = (label, parts[-1][1] + 1)
            else:
                parts.append((label, 1))
        return " → ".join(label if count == 1 else f"{count} {label}" for label, count in parts)

    @property
    def made_by(self) -> dict[str, int]:
        """Nodes each pass made; "host" for those that were there before."""
        return dict(Counter(maker(n) for n in self.nodes))


def stamped(path: Path) -> tuple[ir.Model, str]:
    """The graph at `path` with anchors stamped, and how they came: read, or found just now.

    Raises CheckpointError for a file that is no ONNX graph, NotApplicable for one that is no
    decoder graftline knows.
    """
    model = read_graph(path)
    if FACTS_KEY in model.metadata_props and read_ports(model):
        return model, "read from the graph"
    return recognised(path)


def recognised(path: Path) -> tuple[ir.Model, str]:
    """The graph in a file brought to canonical form, with anchors stamped; raises as `stamped`."""
    from graftline.models.checkpoint import open_checkpoint

    host = open_checkpoint(path).host()
    front = kind_of(host.facts).front
    Pipeline.parse(front, GRAFTS).run(host.model)
    return host.model, f"found just now, after {front}"


def blocks(model: ir.Model) -> list[Block]:
    """The blocks of a stamped graph, in order of the residual stream."""
    members: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        members.setdefault(node.metadata_props.get(BLOCK, "unstamped"), []).append(node)
    return [Block(name, tuple(members[name])) for name in sorted(members, key=_place)]


def block(model: ir.Model, name: str) -> Block:
    """The block of that name. Raises GraftlineError naming those there are."""
    found = {b.name: b for b in blocks(model)}
    if name not in found:
        numbers = [n for n in found if n.isdigit()]
        others = ", ".join(n for n in found if not n.isdigit())
        raise GraftlineError(
            f"no block '{name}'{nearest(name, found)}; there are 0 to {len(numbers) - 1}, {others}"
        )
    return found[name]


def maker(node: ir.Node) -> str:
    """The pass that made a node, or "host"."""
    return node.metadata_props.get(MADE_BY, "host")


def anchors(model: ir.Model) -> dict[str, list[str]]:
    """Names of the nodes found for each role."""
    found: dict[str, list[str]] = {}
    for node in model.graph:
        if role := node.metadata_props.get(ROLE):
            found.setdefault(role, []).append(node.name or node.op_type)
    return found


def node_rows(found: Block) -> list[tuple[str, str, str, str, str]]:
    """For every node of a block: operator, name, what it makes, its role, the pass that made it."""
    return [
        (
            node.op_type,
            node.name or "",
            ", ".join(_shaped(v) for v in node.outputs if v.name),
            node.metadata_props.get(ROLE, ""),
            maker(node),
        )
        for node in found.nodes
    ]


def alike(model: ir.Model) -> list[list[Block]]:
    """The blocks of a stamped graph, those of one picture together."""
    found: dict[tuple[str, bool], list[Block]] = {}
    for one in blocks(model):
        numbered = one.name.isdecimal()
        found.setdefault((one.picture if numbered else one.name, numbered), []).append(one)
    return list(found.values())


def _label(node: ir.Node) -> str:
    mask = node.metadata_props.get(MASK_KEY)
    if mask is None:
        return node.op_type
    meaning = json.loads(mask)
    size = f" {meaning['size']}" if "size" in meaning else ""
    return f"{node.op_type}({meaning['kind']}{size})"


def _place(name: str) -> tuple[int, int]:
    ends = {"shared": 0, "embedding": 1, "head": 3, "unstamped": 4}
    return (2, int(name)) if name.isdigit() else (ends.get(name, 5), 0)


def _shaped(value: ir.Value) -> str:
    if value.shape is None:
        return value.name or ""
    return f"{value.name} [{', '.join(str(d) for d in value.shape)}]"
