"""Where a node belongs: the block of a stamped graph; for others the block that reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graftline.inspection.diff import Diff
from graftline.passes.pipeline.graft import BLOCK, SHARED

WHOLE = "graph"
"""The one place of a graph without blocks."""
ENDS = {WHOLE: 0, SHARED: 1, "embedding": 2, "head": 4}
_NUMBER = re.compile(r"(?<=\.)\d+\b")


def places(model: ir.Model, known: Mapping[ir.Node, str] | None = None) -> dict[ir.Node, str]:
    """The place of every node: its stamp, what is `known` of it, or else the place of all its
    readers; "shared" where these differ."""
    found = dict(known or {})
    nodes = list(model.graph)
    found |= {n: n.metadata_props[BLOCK] for n in nodes if BLOCK in n.metadata_props}
    if not found:
        return dict.fromkeys(nodes, WHOLE)
    for node in reversed(nodes):
        if node not in found:
            readers = {found[u.node] for v in node.outputs for u in v.uses() if u.node in found}
            found[node] = readers.pop() if len(readers) == 1 else SHARED if readers else "head"
    return found


def both_places(diff: Diff) -> dict[ir.Node, str]:
    """The places of the nodes of both graphs; a pair is in one place."""
    after = places(diff.after)
    if set(after.values()) == {WHOLE}:
        before = places(diff.before)
        return before | {b: before[a] for a, b in diff.pairs} | _others(after, diff.added)
    return after | places(diff.before, {a: after[b] for a, b in diff.pairs})


def _others(found: Mapping[ir.Node, str], nodes: Iterable[ir.Node]) -> dict[ir.Node, str]:
    return {node: found[node] for node in nodes}


def rank(place: str) -> tuple[int, int]:
    """The order of places: what several blocks share, the embedding, blocks, the head."""
    return (3, int(place)) if place.isdecimal() else (ENDS.get(place, 5), 0)


def span(places: Iterable[str]) -> str:
    """Places in words: "blocks 0–27, 29", "embedding"."""
    places = list(places)
    numbers = sorted(int(p) for p in places if p.isdecimal())
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [f"{first}" if first == last else f"{first}–{last}" for first, last in runs]
    named = [p for p in places if not p.isdecimal()]
    blocks = [f"block{'s' if len(numbers) > 1 else ''} {', '.join(told)}"] if told else []
    return ", ".join([*named, *blocks])


def alike(lines: Iterable[str]) -> list[tuple[str, int]]:
    """Lines that differ in one number of a name as one line each, and how many they were."""
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(_NUMBER.sub("#", line), []).append(line)
    told: list[tuple[str, int]] = []
    for form, same in found.items():
        if len(same) == 1:
            told.append((same[0], 1))
            continue
        numbers = [int(m.group()) for line in same for m in [_NUMBER.search(line)] if m]
        ends = f"{min(numbers)}…{max(numbers)}" if numbers else ""
        told.append((form.replace("#", ends), len(same)))
    return told
