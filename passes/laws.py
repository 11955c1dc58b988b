"""The four laws every graft is held to: typed, wellformed, interface, neutral.

The numeric law compares the graph before and after on the same seeded feed, with the graft's
neutral values for what it added. `limit` is in units of max(1, largest absolute host output).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import LawBroken
from graftline.evaluate import Feed
from graftline.passes.graft import Evaluate, Graft
from graftline.ports import FACTS_KEY, read_facts, read_ports

TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference allowed by activation dtype, relative to the host's largest output."""


@dataclass(frozen=True)
class LawResult:
    """One law held for one pass: what was checked, in words."""

    graft: str
    law: str
    checked: str


def infer_shapes(model: ir.Model) -> None:
    """ONNX shape inference in place; weights are neither read nor copied."""
    common.ShapeInferencePass()(model)


def typed(graft: Graft, after: ir.Model) -> str:
    """Every graph input, output and initializer has a type."""
    graph = after.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for value in values:
        if value.dtype is None:
            raise LawBroken(graft.name(), "typed", f"'{value.name}'", "has no element type")
    return f"{len(values)} interface values and weights are typed"


def wellformed(graft: Graft, after: ir.Model) -> str:
    """Names are unique, every value is made before it is read, opsets are declared."""
    seen: set[str] = {v.name or "" for v in after.graph.inputs} | set(after.graph.initializers)
    for node in after.graph:
        if node.domain not in after.opset_imports:
            raise LawBroken(
                graft.name(), "wellformed", f"'{node.name}'", f"no opset for '{node.domain}'"
            )
        for value in node.inputs:
            if value is not None and (value.name or "") not in seen:
                raise LawBroken(
                    graft.name(), "wellformed", f"'{value.name}'", "is read before it is made"
                )
        for value in node.outputs:
            name = value.name or ""
            if name and name in seen:
                raise LawBroken(graft.name(), "wellformed", f"'{name}'", "is made twice")
            seen.add(name)
    for value in after.graph.outputs:
        if (value.name or "") not in seen:
            raise LawBroken(
                graft.name(), "wellformed", f"'{value.name}'", "is an output nobody makes"
            )
    return f"{len(after.graph)} nodes in order, names unique"


def interface(graft: Graft, before: ir.Model, after: ir.Model) -> str:
    """The ports are exactly the graph's inputs and outputs, and say their dtypes; every input of
    the host is still there, but those that the graft says it drops."""
    graph = after.graph
    kept = {v.name for v in graph.inputs} | graft.dropped(before)
    lost = sorted(str(v.name) for v in before.graph.inputs if v.name not in kept)
    if lost:
        raise LawBroken(graft.name(), "interface", "inputs", f"{', '.join(lost)} gone")
    for direction, values in (("in", graph.inputs), ("out", graph.outputs)):
        actual = {v.name: v.dtype.numpy().name if v.dtype else "?" for v in values}
        stated = {p.name: p.dtype for p in read_ports(after) if p.direction == direction}
        if actual != stated:
            odd = sorted(set(actual.items()) ^ set(stated.items()), key=str)
            raise LawBroken(
                graft.name(), "interface", f"{direction}puts", f"ports differ at {odd[:4]}"
            )
    return f"{len(read_ports(after))} ports match the graph"


def neutral(
    graft: Graft,
    before: Feed,
    after: Feed,
    written: int,
    caches: frozenset[str] = frozenset(),
    dtype: str = "float32",
) -> str:
    """Under neutral inputs the grafted graph computes the host's outputs, ports it kept included.

    Of a cache only the `written` slots count: what the others hold nobody may see.
    """
    carried, worst, compared = graft.carried(after), 0.0, 0
    for name, expected in before.items():
        if name not in carried:
            raise LawBroken(graft.name(), "neutral", f"'{name}'", "the host's output is gone")
        got = carried[name]
        if name in caches:
            expected, got = expected[:, :, :written], got[:, :, :written]
        if got.shape != expected.shape:
            raise LawBroken(
                graft.name(), "neutral", f"'{name}'", f"{got.shape} != {expected.shape}"
            )
        if not np.issubdtype(expected.dtype, np.floating):
            continue
        scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        gap = float(np.max(np.abs(got.astype(np.float64) - expected), initial=0.0)) / scale
        worst, compared = max(worst, gap), compared + 1
        if not gap <= TOLERANCE[dtype] and graft.numeric:
            raise LawBroken(
                graft.name(), "neutral", f"'{name}'", f"{gap:.3g} > {TOLERANCE[dtype]:g}"
            )
    verdict = "equal" if graft.numeric else "by design not equal"
    return f"{compared} outputs {verdict} to the host's (max relative difference {worst:.2g})"


def check(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed | None, evaluate: Evaluate
) -> list[LawResult]:
    """Hold one graft to the common laws and its own. Without a feed only the structural ones run.
    """
    name = str(graft)
    done = [
        LawResult(name, "typed", typed(graft, after)),
        LawResult(name, "wellformed", wellformed(graft, after)),
        LawResult(name, "interface", interface(graft, before, after)),
    ]
    if feed is None:
        return done
    gone = graft.dropped(before)
    was = {name: value for name, value in evaluate(before, feed).items() if name not in gone}
    now = evaluate(after, graft.neutral(feed, after))
    caches = frozenset(p.name for p in read_ports(before) if p.role in ("cache.key", "cache.value"))
    written = int(np.min(feed.get("write_index", 0))) + feed["tokens"].shape[1]
    dtype = read_facts(after).dtype if FACTS_KEY in after.metadata_props else "float32"
    done.append(LawResult(name, "neutral", neutral(graft, was, now, written, caches, dtype)))
    for law in graft.laws:
        done.append(LawResult(name, law.__name__, law(graft, before, after, feed, evaluate)))
    return done
