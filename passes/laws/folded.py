"""The law of folding: no node is left that computes what is a constant."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.law import Evidence
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.graph.meaning import label


def went(
    who: str,
    before: ir.Model,
    after: ir.Model,
    nodes: Iterable[ir.Node],
    alone: str,
    why: str,
    may_stay: Callable[[ir.Node], bool] = lambda node: False,
) -> Evidence:
    """Of the `nodes` of `before`, which depend on `alone`, none is left that reads constants alone,
    but those that may; how many nodes and bytes went, and `why` others are left. Raises LawBroken.
    """
    names = {v.name for n in nodes for v in n.outputs}
    left = [n for n in after.graph if n.outputs[0].name in names]
    constant = [n for n in left if all(v is None or v.const_value is not None for v in n.inputs)]
    if still := [n for n in constant if not may_stay(n)]:
        by = f"{len(still)} of {len(names)} nodes that depend on {alone} are left"
        raise LawBroken(who, "folded", label(still[0]), by)
    sizes = weight_bytes(before), weight_bytes(after)
    sized = f", {len(left)} are left {why}" if left else ""
    what = f"{len(names) - len(left)} nodes that depend on {alone} are constants{sized}"
    return Evidence(f"{what}; {sizes[0]:,} bytes of weights became {sizes[1]:,}")
