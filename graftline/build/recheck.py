"""A bundle rebuilt and proven again from its own export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_ir as ir

from graftline.build.compiled import Compiled, Compiler
from graftline.build.heads import is_read
from graftline.build.ledger import Ledger
from graftline.bundle.manifest import CANONICAL, Stage, stage_name
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.errors import LawBroken
from graftline.exits import ADAPTER
from graftline.facts import DraftBlockFacts
from graftline.law import LawRow
from graftline.owners import HEAD, TARGET
from graftline.passes.grafts.placeholders import carried
from graftline.passes.graph.weights import tensor_of
from graftline.passes.lower.quantize.calibration import GPTQ
from graftline.passes.lower.quantize.laws import ROUNDING, Made
from graftline.recipe import recipe


def recheck(bundle: Bundle, watch: Callable[[str], None]) -> list[LawRow]:
    """Compile the bundle's own exports again and prove every stage again.

    The pipelines must give the very graphs that are stored. Raises LawBroken and what
    the pipelines raise.
    """
    manifest = bundle.manifest
    compilers: dict[str, Compiler] = {}
    chosen = recipe(manifest.recipe) if manifest.recipe else None
    ledger = Ledger(manifest.stages, bundle.path, manifest.target, chosen, watch)
    rows: list[LawRow] = []
    for name, stage in manifest.stages.items():
        if not stage.made_of:
            continue
        compiler = _compiler(bundle, stage, compilers, watch)
        if stage.role == "fused" and (head := _block(bundle)) is not None:
            block = _compiler(bundle, head, compilers, watch)
            compiler.block = block.block_of(head.pipeline)
        make = compiler.form if stage.role == "form" else compiler.compile
        if (again := make(stage.pipeline)) is None:
            by = "its passes do not fit the engine any more"
            raise LawBroken(name, "reproducible", "the stage", by)
        rows += ledger.enter(name, again)[1]
        same = _made_again(again, load_graph(bundle.graph(name)), name)
        rows.append(replace(same, owner=stage.owner))
        rows += ledger.prove(name, None, "the checkpoint is no part of a bundle").laws
    return rows


def _compiler(
    bundle: Bundle, stage: Stage, known: dict[str, Compiler], watch: Callable[[str], None]
) -> Compiler:
    """The compiler of the export that a stage is made of, made when it is first needed."""
    if stage.made_of not in known:
        export = load_graph(bundle.graph(stage.made_of))
        main = stage.made_of == bundle.manifest.main.made_of
        own = export if isinstance(stage.facts, DraftBlockFacts) else None
        known[stage.made_of] = Compiler(export, watch, _heads(bundle) if main else own)
    return known[stage.made_of]


def _block(bundle: Bundle) -> Stage | None:
    """The engine's stage of a draft head that is a decoder of its own."""
    engine = bundle.manifest.engines().get(HEAD)
    stage = None if engine is None else bundle.manifest.stages[engine]
    return stage if stage is not None and isinstance(stage.facts, DraftBlockFacts) else None


def _heads(bundle: Bundle) -> ir.Model | None:
    """The draft heads that the target may have been given."""
    if ADAPTER in bundle.manifest.stages:
        return load_graph(bundle.graph(ADAPTER))
    engine = bundle.manifest.engines().get(HEAD)
    if engine is None:
        return carried(load_graph(bundle.graph(stage_name(TARGET, CANONICAL))))
    head = load_graph(bundle.graph(bundle.manifest.stages[engine].made_of))
    return head if is_read(head) else None


def _made_again(compiled: Compiled, stored: ir.Model, what: str) -> LawRow:
    """Law reproducible: the pipeline gives the very graph that is stored, weights included.

    Matrices that were rounded for activations come out alike where sums are added up in the same
    order; on another processor they are as near to each other as rounding is to its source.
    """
    made, near = compiled.lowered, set[str]()
    for place, (now, was) in enumerate(zip_longest(made.graph, stored.graph)):
        if _node(now) != _node(was):
            by = f"{_node(was)} is stored, {_node(now)} is made"
            raise LawBroken(what, "reproducible", f"node {place}", by)
        if now is not None and was is not None and now.metadata_props.get(ROUNDING) == GPTQ:
            near |= _near(what, now, was)
    weights = made.graph.initializers, stored.graph.initializers
    if odd := sorted(weights[0].keys() ^ weights[1].keys()):
        only = "is a weight of only one of the two graphs"
        raise LawBroken(what, "reproducible", f"'{odd[0]}'", only)
    for name, value in weights[0].items():
        if name not in near and not _same(tensor_of(value), tensor_of(weights[1][name])):
            raise LawBroken(what, "reproducible", f"weight '{name}'", "the stored numbers differ")
    told = f"{len(stored.graph)} nodes and {len(weights[1])} weights made again as stored"
    return LawRow(what, "reproducible", "held", told)


def _near(what: str, now: ir.Node, was: ir.Node) -> set[str]:
    """The operands of a matrix that was rounded for activations, made again nearly as stored."""
    made = Made.of(now)
    if not (gap := made.differs(Made.of(was))) <= made.nearest:
        by = f"is off by {gap:.2g} from what is stored, above {made.nearest:.2g}"
        raise LawBroken(what, "reproducible", f"'{made.label.removesuffix('^T')}'", by)
    return {value.name or "" for value in now.inputs[1:] if value is not None}


def _node(node: ir.Node | None) -> tuple[Any, ...]:
    """What a node is, without its own name."""
    if node is None:
        return ("nothing",)
    inputs = tuple(v.name if v is not None else "" for v in node.inputs)
    outputs = tuple(v.name if v.uses() or v.is_graph_output() else "" for v in node.outputs)
    attributes = tuple(sorted((k, _attribute(a)) for k, a in node.attributes.items()))
    return (node.domain, node.op_type, inputs, outputs, attributes)


def _attribute(attribute: ir.Attr) -> str:
    """An attribute's value; floats as the single precision that a file keeps."""
    kind, value = attribute.type, attribute.value
    if kind == ir.AttributeType.FLOAT:
        return str(np.float32(value))
    if kind == ir.AttributeType.FLOATS:
        return str([np.float32(v) for v in value])
    if kind == ir.AttributeType.TENSOR:
        return f"{value.dtype} {list(value.shape)} {value.tobytes().hex()}"
    if kind == ir.AttributeType.GRAPH:
        return str([_node(node) for node in value])
    return str(list(value) if isinstance(value, (list, tuple)) else value)


def _same(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether two weights are the same bytes; those at one place of one file are not read."""
    if one.dtype != other.dtype or list(one.shape) != list(other.shape):
        return False
    both = [t for t in (one, other) if isinstance(t, ir.ExternalTensor)]
    places = {(str(t.path), t.offset, t.length) for t in both}
    return (len(both) == 2 and len(places) == 1) or one.tobytes() == other.tobytes()
