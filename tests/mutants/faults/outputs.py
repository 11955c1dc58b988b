"""Taps, rows asked for, reductions of the logits, and a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    constant,
    op,
    rewired,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import LOWER
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs, with_role

TAP = GRAFTS["tap"]
SELECT = GRAFTS["select-rows"]
REDUCE = GRAFTS["reduce-logits"]
CUT = GRAFTS["cut-depth"]
TAPS = {"passes": "kv-cache | tree-mask | tap{layers=1+norm} | reduce-logits"}
CHAIN = {"passes": "kv-cache | select-rows | reduce-logits"}
ENTROPY = {"passes": "kv-cache | select-rows | reduce-logits{topk=4,entropy=true}"}
CUTS = {"draft": "int8", "draft_depths": (3,)}


def _output(model: ir.Model, name: str) -> ir.Value:
    return next(v for v in model.graph.outputs if v.name == name)


def _published(model: ir.Model, name: str, change: Callable[[ir.Node, ir.Value], ir.Value]) -> int:
    """An output is made of what was to be it; nobody else sees the difference."""
    old, maker = _output(model, name), ir.node("Identity", [None])
    model.graph.append(maker)
    maker.replace_input_with(0, change(maker, old))
    new = maker.outputs[0]
    new.type, new.shape = old.type, old.shape
    model.graph.outputs[list(model.graph.outputs).index(old)] = new
    old.name, new.name = f"{name}.right", name
    return 1


def _wrong(name: str, op_type: str, *constants: tuple[Any, Any], **attributes: Any) -> Edit:
    def edit(model: ir.Model) -> int:
        def change(maker: ir.Node, old: ir.Value) -> ir.Value:
            more = [constant(model, *pair) for pair in constants]
            return op(model, maker, op_type, [old, *more], **attributes)

        return _published(model, name, change)

    return edit


def _top_gap(model: ir.Model) -> int:
    """Best minus third best."""

    def change(maker: ir.Node, old: ir.Value) -> ir.Value:
        top = _output(model, "topk_logits")
        first, third = (
            op(model, maker, "Gather", [top, constant(model, i, np.int64)], axis=-1) for i in (0, 2)
        )
        return op(model, maker, "Sub", [first, third])

    return _published(model, "top_gap", change)


def _unsorted(model: ir.Model) -> int:
    """The second and third best change places, ids and logits alike."""
    size = int(_output(model, "topk_ids").shape[2])  # type: ignore[index, arg-type]
    order = [0, 2, 1, *range(3, size)]
    swaps = [_wrong(n, "Gather", (order, np.int64), axis=-1) for n in ("topk_ids", "topk_logits")]
    return sum(swap(model) for swap in swaps)


def _logits_unsorted(model: ir.Model) -> int:
    """The logits, but not the ids."""
    size = int(_output(model, "topk_ids").shape[2])  # type: ignore[index, arg-type]
    return _wrong("topk_logits", "Gather", ([1, 0, *range(2, size)], np.int64), axis=-1)(model)


def _rows_shifted(model: ir.Model) -> int:
    """Rows asked for are counted from one; the last stays the last."""
    rows = next(v for v in model.graph.inputs if v.name == "rows")
    tokens = next(v for v in model.graph.inputs if v.name == "tokens")
    node = rows.consumers()[0]
    last = op(model, node, "Shape", [tokens], start=1, end=2)
    one = constant(model, 1, np.int64)
    next_ = op(model, node, "Add", [rows, one])
    return rewired(node, 0, op(model, node, "Mod", [next_, last]))


def _rows_of_the_other(model: ir.Model) -> int:
    """Each sequence gets the rows of the one opposite."""
    rows = next(v for v in model.graph.inputs if v.name == "rows")
    pick = rows.consumers()[0].outputs[0].consumers()[0]
    ends = [constant(model, [n], np.int64) for n in (-1, -(1 << 40), 0, -1)]
    return rewired(pick, 0, op(model, pick, "Slice", [pick.inputs[0], *ends]))


def _tap(source: Callable[[ir.Model], ir.Value | None], name: str) -> Edit:
    def edit(model: ir.Model) -> int:
        maker = _output(model, name).producer()
        assert maker is not None
        new = source(model)
        return rewired(maker, 0, new) if new is not None else 0

    return edit


def _before_norm(model: ir.Model) -> ir.Value | None:
    return with_role(model.graph, "final_norm")[-1].inputs[0]


def _cut_short(model: ir.Model) -> int:
    """The head reads the stream one block early."""
    stream = block_outputs(model.graph)
    norm = with_role(model.graph, "final_norm")[0]
    return rewired(norm, 0, stream[-2]) if len(stream) > 1 else 0


OUTPUTS = [
    Mutant("tap-of-another-layer", "tap", "hidden.1 is the stream after block 0",
           "plain", "tapped",
           after(TAP, _tap(lambda m: block_outputs(m.graph)[0], "hidden.1")), TAPS),
    Mutant("tap-before-norm", "tap", "hidden.norm is the stream before the final norm",
           "plain", "tapped", after(TAP, _tap(_before_norm, "hidden.norm")), TAPS),
    Mutant("tap-after-norm", "tap", "hidden.1 is the final norm's output",
           "plain", "tapped",
           after(TAP, _tap(lambda m: with_role(m.graph, "final_norm")[0].outputs[0], "hidden.1")),
           TAPS),
    Mutant("tap-lowered", "lower-ort: skip_norm", "hidden.1 is half of a fused norm's sum",
           "plain", "neutral", after(LOWER, _wrong("hidden.1", "Mul", (0.5, np.float32))), TAPS),
    Mutant("rows-shifted", "select-rows", "the row after the one asked for is given",
           "plain", "neutral", after(SELECT, _rows_shifted), CHAIN),
    Mutant("rows-of-another-sequence", "select-rows", "each sequence gets another's rows",
           "plain", "neutral", after(SELECT, _rows_of_the_other), CHAIN),
    Mutant("argmax-of-the-next-group", "reduce-logits: Groups.argmax", "256 too many",
           "plain", "reduced", after(REDUCE, _wrong("argmax", "Add", (256, np.int64))), CHAIN),
    Mutant("topk-ids-of-another-group", "reduce-logits: Groups.topk", "256 too few",
           "plain", "reduced", after(REDUCE, _wrong("topk_ids", "Mod", (256, np.int64))), CHAIN),
    Mutant("topk-unsorted", "reduce-logits: Groups.topk", "second and third best change places",
           "plain", "reduced", after(REDUCE, _unsorted), CHAIN),
    Mutant("topk-logits-unsorted", "reduce-logits: Groups.topk",
           "best and second logit change places, their ids do not",
           "plain", "reduced", after(REDUCE, _logits_unsorted), CHAIN),
    Mutant("top-gap-to-the-third", "reduce-logits", "top_gap is best minus third best",
           "plain", "reduced", after(REDUCE, _top_gap), CHAIN),
    Mutant("entropy-in-bits", "reduce-logits", "entropy is in bits, not nats",
           "plain", "reduced",
           after(REDUCE, _wrong("entropy", "Mul", (1 / np.log(2), np.float32))), ENTROPY),
    Mutant("argmax-lowered", "lower-ort", "argmax is one too many in the lowered graph",
           "plain", "neutral", after(LOWER, _wrong("argmax", "Add", (1, np.int64))), CHAIN),
    Mutant("topk-logits-lowered", "lower-ort", "the lowered topk_logits are 1 % too large",
           "plain", "neutral",
           after(LOWER, _wrong("topk_logits", "Mul", (1.01, np.float32))), CHAIN),
    Mutant("cut-one-block-short", "cut-depth", "the head reads the stream one block early",
           "plain", "prefix", after(CUT, _cut_short), CUTS),
]  # fmt: skip
