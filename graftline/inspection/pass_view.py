"""What one pass did: the nodes that it made, where, and the laws that it was held to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx_ir as ir

from graftline.bundle.manifest import Manifest, PassRow
from graftline.errors import GraftlineError, nearest
from graftline.inspection.blocks import Block, blocks, maker
from graftline.inspection.diff_text import HOST, operator
from graftline.inspection.places import span
from graftline.law import LawRow

SHOWN = 2
"""Names of nodes that a row lists."""


@dataclass(frozen=True)
class PassView:
    """`made`: places, how many nodes in each of them, their operator, and some names. `rows` and
    `laws` are what the manifest says of the pass; empty of a graph outside a bundle."""

    name: str
    made: tuple[tuple[str, int, str, str], ...]
    rows: tuple[PassRow, ...]
    laws: tuple[LawRow, ...]


def pass_view(model: ir.Model, name: str, manifest: Manifest | None) -> PassView:
    """What the pass did to this graph. Raises GraftlineError, with those there are, for a pass that
    neither the graph nor the manifest knows."""
    makers = {maker(node) for node in model.graph} - {HOST}
    rows = () if manifest is None else manifest.passes
    known = dict.fromkeys([*(row.name for row in rows), *sorted(makers)])
    if name not in known:
        listed = ", ".join(known) or "none"
        raise GraftlineError(f"no pass '{name}' here{nearest(name, known)}; there are: {listed}")
    laws = () if manifest is None else manifest.laws
    return PassView(
        name,
        tuple(_made(blocks(model), name)),
        tuple(row for row in rows if row.name == name),
        tuple(law for law in laws if law.graft == name),
    )


def _made(found: list[Block], name: str) -> list[tuple[str, int, str, str]]:
    """By operator, in blocks that have equally many; equal blocks are one row."""
    same: dict[tuple[str, int, bool], list[tuple[str, list[str]]]] = defaultdict(list)
    for block in found:
        counts: dict[str, list[str]] = defaultdict(list)
        for node in block.nodes:
            if maker(node) == name:
                counts[operator(node)].append(node.name or "")
        for kind, names in counts.items():
            key = kind, len(names), block.name.isdecimal()
            same[key].append((block.name, names))
    return [
        (span(place for place, _ in places), count, kind, _few(places))
        for (kind, count, _), places in same.items()
    ]


def _few(places: list[tuple[str, list[str]]]) -> str:
    names = [name for _, several in places for name in several]
    more = f", … {len(names)} in all" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
