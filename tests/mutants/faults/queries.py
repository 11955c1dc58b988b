"""Decoders of queries: stored prototypes that are other constants or none, and other classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import nodes, op, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.passes import GRAFTS
from graftline.passes.grafts import fold_stored
from graftline.passes.graph import stored
from graftline.passes.pipeline.graft import MADE_BY

FOLD, REDUCE = GRAFTS["fold-stored"], GRAFTS["reduce-classes"]


def _of_others(model: ir.Model) -> int:
    """The numbers of each stored prototype change places."""
    made = [v for name, v in model.graph.initializers.items() if name.startswith("folded.")]
    for value in made:
        assert value.const_value is not None
        array = np.roll(value.const_value.numpy(), 1, -1)
        value.const_value = ir.tensor(array, name=value.name)
    return len(made)


def _left(real: Any, touched: Touched) -> Any:
    """Nothing is folded."""

    def fold(model: ir.Model, by: str) -> int:
        touched.count += 1
        return 0

    return fold


def _any_size(real: Any, touched: Touched) -> Any:
    """A broadcast becomes a constant, however large."""

    def allowed(sources: Any) -> int:
        touched.count += 1
        return 1 << 40

    return allowed


def _best(model: ir.Model) -> ir.Node:
    (node,) = (n for n in nodes(model, "ArgMax") if n.metadata_props.get(MADE_BY) == REDUCE.name())
    return node


def _of_rows(model: ir.Model) -> int:
    """The best place along the first axis of a volume, in place of the best class."""
    node = _best(model)
    node.attributes["axis"] = ir.AttrInt64("axis", 2)
    node.outputs[0].shape = None
    return 1


def _last(model: ir.Model) -> int:
    """Of equal scores the last is taken."""
    _best(model).attributes["select_last_index"] = ir.AttrInt64("select_last_index", 1)
    return 1


def _worst(model: ir.Model) -> int:
    """The class of the smallest score."""
    _best(model).op_type = "ArgMin"
    return 1


def _rounded(model: ir.Model) -> int:
    """Scores are rounded before they are compared."""
    node = _best(model)
    return rewired(node, 0, op(model, node, "Round", [node.inputs[0]]))


ON = {"recipe": "protoocc"}
QUERIES = [
    Mutant("stored-of-others", "fold-stored", "numbers of a prototype change places",
           "protoocc", "neutral", after(FOLD, _of_others), ON),
    Mutant("stored-left", "fold-stored", "nothing is folded", "protoocc", "folded",
           instead(fold_stored, "fold_stored", _left), ON),
    Mutant("stored-of-any-size", "stored: allowed_bytes", "a broadcast becomes a constant",
           "broadcast", "folded", instead(stored, "allowed_bytes", _any_size),
           {"passes": "fold-stored | reduce-classes"}),
    Mutant("classes-of-another-axis", "reduce-classes", "the best place, not the best class",
           "protoocc", "typed or neutral", after(REDUCE, _of_rows), ON),
    Mutant("classes-last-of-ties", "reduce-classes", "of equal scores the last is taken",
           "protoocc", "first-largest", after(REDUCE, _last), ON),
    Mutant("classes-of-the-worst", "reduce-classes", "the class of the smallest score",
           "protoocc", "neutral", after(REDUCE, _worst), ON),
    Mutant("classes-of-rounded-scores", "reduce-classes", "scores are rounded before",
           "protoocc", "neutral", after(REDUCE, _rounded), ON),
]  # fmt: skip
