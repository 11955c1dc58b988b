"""Paths through vertices: one that ends early, goes elsewhere, or keeps what it should not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import bypass, constant, nodes, rewired
from faults.mutant import Edit, Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.grafts import path_text
from graftline.passes.pipeline.graft import MADE_BY

GRAFT = GRAFTS["best-path"]


def _own(model: ir.Model, *types: str) -> list[ir.Node]:
    return [n for n in nodes(model, *types) if n.metadata_props.get(MADE_BY) == GRAFT.name()]


def _last_of_equals(model: ir.Model) -> int:
    """Of equal ways the last is taken."""
    onward = _own(model, "ArgMax")[-1]
    onward.attributes["select_last_index"] = ir.AttrInt64("select_last_index", 1)
    return 1


def _blind(model: ir.Model) -> int:
    """The tokens ahead do not count."""
    (likely,) = _own(model, "Add")
    return bypass(likely)


def _of_all(model: ir.Model) -> int:
    """Rows go on to the last of all vertices, beyond their own."""
    stay, *_ = _own(model, "Where")
    return rewired(stay, 0, constant(model, False, np.bool_))


def _again(model: ir.Model) -> int:
    """Tokens that come again are kept."""
    passed = next(n for n in _own(model, "Or") if n.inputs[1] and _made(n.inputs[1]) == "Equal")
    return bypass(passed)


def _made(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _ragged(model: ir.Model) -> int:
    """Behind a row's own positions the last vertex's states stand in place of zeros."""
    (held,) = _own(model, "Mul")[1:]
    return rewired(held, 1, constant(model, 1, np.float32))


def _short(real: Any, touched: Touched) -> Any:
    """A walk is doubled too seldom."""
    touched.count += 1
    return 2


def _counted(model: ir.Model) -> int:
    """Positions are counted one vertex early."""
    (rank,) = _own(model, "CumSum")
    rank.attributes["exclusive"] = ir.AttrInt64("exclusive", 1)
    return 1


def _endless(model: ir.Model) -> int:
    """How likely the way to the last vertex is does not count."""
    return sum(
        bypass(n) for n in _own(model, "Add") if n.inputs[1] and _made(n.inputs[1]) == "Squeeze"
    )


def _longer(model: ir.Model) -> int:
    """A path is traced back from a vertex behind its last."""
    found = _own(model, "GreaterOrEqual")
    for node in found:
        node.op_type = "Greater"
    return len(found)


def _edit(name: str, wrong: str, law: str, edit: Edit) -> Mutant:
    return Mutant(name, "best-path", wrong, "dag", law, after(GRAFT, edit), ON)


ON = {"passes": "best-path | join", "spec": "dag"}
VITERBI = {"passes": "best-path{by=joint-viterbi,longest=6} | join", "spec": "dag"}
PATHS = [
    _edit("path-of-last-ties", "of equal ways the last is taken", "paths", _last_of_equals),
    _edit("path-blind-to-tokens", "the tokens ahead do not count", "neutral", _blind),
    _edit("path-beyond-its-end", "rows go on beyond their last vertex", "neutral", _of_all),
    _edit("path-with-repeats", "tokens that come again are kept", "neutral or paths", _again),
    _edit("path-with-ragged-states", "states behind a row's own are kept", "neutral", _ragged),
    _edit("path-counted-early", "positions are counted a vertex early", "neutral", _counted),
    Mutant("viterbi-without-an-end", "best-path", "the way to the last vertex does not count",
           "dag", "neutral or paths", after(GRAFT, _endless), VITERBI),
    Mutant("viterbi-traced-from-behind", "best-path", "a path is traced from behind its end", "dag",
           "paths", after(GRAFT, _longer), VITERBI),
    Mutant("path-cut-short", "path_text: DOUBLINGS", "a walk is doubled too seldom", "dag",
           "neutral", instead(path_text, "DOUBLINGS", _short), ON),
]  # fmt: skip
