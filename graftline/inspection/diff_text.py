"""A diff as text: for a terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from graftline.inspection.blocks import maker
from graftline.inspection.diff import Diff
from graftline.inspection.places import alike, both_places, rank, span

HOST = "host"


@dataclass(frozen=True)
class Row:
    """One line of a diff: "+" added, "-" removed, "~" changed; how many such nodes; the operator or
    what is no node, the differences, and the pass that made it ("" where it was there before)."""

    sign: str
    count: int
    what: str
    lines: tuple[str, ...] = ()
    by: str = ""

    @property
    def text(self) -> str:
        """The line, without its sign."""
        count = f"{self.count} × " if self.count > 1 else ""
        told = f": {'; '.join(self.lines)}" if self.lines else ""
        return f"{count}{self.what}{told}" + (f"  ({self.by})" if self.by else "")


@dataclass(frozen=True)
class Part:
    """What differs in places that differ alike."""

    title: str
    places: int
    rows: tuple[Row, ...]


def parts(diff: Diff) -> list[Part]:
    """The differences by place; equal ones of several blocks are one part."""
    where = both_places(diff)
    found: dict[str, Counter[tuple[str, str, tuple[str, ...], str]]] = defaultdict(Counter)
    for sign, nodes in (("-", diff.removed), ("+", diff.added)):
        for node in nodes:
            by = maker(node) if sign == "+" else HOST
            found[where[node]][sign, operator(node), (), "" if by == HOST else by] += 1
    for change in diff.changed:
        node = change.after
        found[where[node]]["~", operator(node), change.lines, ""] += 1
    same: dict[frozenset[Any], list[str]] = defaultdict(list)
    for place in sorted(found, key=rank):
        same[frozenset(found[place].items())].append(place)
    told: list[Part] = []
    for these in same.values():
        rows = tuple(Row(key[0], n, *key[1:]) for key, n in found[these[0]].items())
        told.append(Part(span(these), len(these), rows))
    if diff.graph:
        lines = tuple(Row("~", count, line) for line, count in alike(diff.graph))
        told.insert(0, Part("ports and versions", 1, lines))
    return told


def operator(node: ir.Node) -> str:
    """The operator of a node, with its domain unless that is ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def text_lines(diff: Diff) -> Iterator[tuple[str, str]]:
    """Lines for a terminal, each with its sign ("" for a title)."""
    for part in parts(diff):
        yield "", part.title + (f"  × {part.places}" if part.places > 1 else "")
        for row in part.rows:
            yield row.sign, row.text


def markdown(name: str, diff: Diff) -> str:
    """The diff for a pull request: one line, and what differs folded away below it."""
    head = f"**{_inline(name)}**: {diff.told}\n"
    if diff.equal:
        return head
    told = text_lines(diff)
    lines = (f"{MARK[sign]} {text}" if sign else f"@@ {text} @@" for sign, text in told)
    body = "\n".join(line.replace("`", "'") for line in lines)
    folded = f"```diff\n{body}\n```\n\n</details>\n"
    return f"{head}\n<details><summary>what differs</summary>\n\n{folded}"


MARK = {"+": "+", "-": "-", "~": "!"}
"""A changed line in the colours of Markdown's diff."""


def _inline(name: str) -> str:
    """A name that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>()#+-.!|" else c for c in name)
