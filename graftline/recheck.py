"""A bundle made and proven again from its own export."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import onnx_ir as ir

from graftline.bundle import Bundle
from graftline.compiled import Compiled, compile_graph
from graftline.draft import DEPTHS
from graftline.errors import LawBroken
from graftline.law import LawRow
from graftline.proof import prove, prove_depth, prove_fused
from graftline.recipe import FUSED, recipe
from graftline.store import load_graph


def recheck(bundle: Bundle, watch: Callable[[str], None]) -> list[LawRow]:
    """Compile the bundle's own export again and prove it again.

    The pipeline must give the very graphs that are stored. Raises LawBroken and what
    the pipeline raises.
    """
    manifest = bundle.manifest
    files, ports, facts = dict(manifest.graphs), manifest.ports, manifest.facts
    target, dtype = manifest.target, manifest.dtype
    export = load_graph(bundle.graph("export"))
    compiled = compile_graph(export, manifest.pipeline, watch)
    rows = [*compiled.laws, _made_again(compiled, load_graph(bundle.graph(target)), "pipeline")]
    proof = prove(
        bundle.path, files, facts, ports[target], ports["canonical"], target, dtype, watch
    )
    rows += proof.laws
    if FUSED in files:
        step = compile_graph(export, manifest.extra[FUSED]["pipeline"], watch)
        rows += step.beyond(compiled).laws
        rows.append(_made_again(step, load_graph(bundle.graph(FUSED)), FUSED))
        chosen = recipe(manifest.recipe)
        rows.append(prove_fused(bundle.path, files, facts, ports, target, chosen, watch))
    for stage, depth in manifest.extra.get(DEPTHS, {}).items():
        cut, blocks = compile_graph(export, depth["pipeline"], watch), depth["blocks"]
        rows += cut.beyond(compiled).laws
        rows.append(_made_again(cut, load_graph(bundle.graph(stage)), stage))
        rows += prove_depth(bundle.path, files, facts, ports, stage, blocks, target, dtype, watch)
    return rows


def _made_again(compiled: Compiled, stored: ir.Model, what: str) -> LawRow:
    """Law reproducible: the pipeline gives the very graph that is stored."""
    for place, (now, was) in enumerate(zip_longest(compiled.lowered.graph, stored.graph)):
        if _wiring(now) != _wiring(was):
            raise LawBroken(
                what, "reproducible", f"node {place}", f"{_wiring(was)} is stored, not made"
            )
    return LawRow(what, "reproducible", "held", f"{len(stored.graph)} nodes made again as stored")


def _wiring(node: ir.Node | None) -> tuple[Any, ...]:
    """What a node is, without its own name."""
    if node is None:
        return ("nothing",)
    inputs = tuple(v.name if v is not None else "" for v in node.inputs)
    outputs = tuple(v.name if v.uses() or v.is_graph_output() else "" for v in node.outputs)
    return (node.op_type, inputs, outputs)
