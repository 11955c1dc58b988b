"""Norms: another epsilon, a lost scale or bias, a norm left out, a residual behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    NORM_TYPES,
    above,
    attentions,
    attribute,
    bypass,
    nodes,
    numbers,
    rewired,
    weight,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE, LOWER


def _epsilon(place: int, *op_types: str) -> Edit:
    """One norm's epsilon is 1e-5, not 1e-6."""

    def edit(model: ir.Model) -> int:
        found = nodes(model, *(op_types or NORM_TYPES))
        return attribute(found[place], "epsilon", 1e-5) if len(found) > place else 0

    return edit


def _no_plus_one(model: ir.Model) -> int:
    """A scale stored as its difference from one is taken for the scale."""
    return numbers(model, [n.inputs[1] for n in nodes(model, *NORM_TYPES)], 1, 0)


def _norm_gone(place: int, *op_types: str) -> Edit:
    def edit(model: ir.Model) -> int:
        found = nodes(model, *(op_types or NORM_TYPES))
        return bypass(found[place]) if len(found) > abs(place) else 0

    return edit


def _norm_input(place: int, what: int, change: Callable[[Any], Any]) -> Edit:
    """The scale (1) or bias (2) of one norm."""

    def edit(model: ir.Model) -> int:
        found = nodes(model, *NORM_TYPES)
        if len(found) <= place or len(found[place].inputs) <= what:
            return 0
        return weight(model, found[place], what, change)

    return edit


def _residual_after_norm(layer: int) -> Edit:
    """The stream goes on from the normalised rows, not from the rows."""

    def edit(model: ir.Model) -> int:
        found = attentions(model)
        if layer >= len(found):
            return 0
        norm = next(n for n in above(found[layer].inputs[0]) if n.op_type in NORM_TYPES)
        source = norm.inputs[0]
        assert source is not None
        add = next(n for n in source.consumers() if n.op_type == "Add")
        return rewired(add, list(add.inputs).index(source), norm.outputs[0])

    return edit


def _sum_forgets_skip(model: ir.Model) -> int:
    """The sum that a fused norm hands on lacks what was added."""
    found = nodes(model, "SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
    node = next(n for n in found if n.outputs[3].uses())
    source = node.inputs[0]
    assert source is not None
    node.outputs[3].replace_all_uses_with(source)
    return 1


NORMS = [
    Mutant("epsilon-of-one-norm", "canonicalize: fuse_norms", "epsilon 1e-5 for 1e-6 in block 0",
           "llama", "neutral", after(CANONICALIZE, _epsilon(0))),
    Mutant("epsilon-of-a-later-norm", "canonicalize: fuse_norms", "epsilon 1e-5 in block 3",
           "llama", "neutral", after(CANONICALIZE, _epsilon(6))),
    Mutant("epsilon-of-final-norm", "canonicalize: fuse_norms", "epsilon 1e-5 in the final norm",
           "llama", "neutral", after(CANONICALIZE, _epsilon(10))),
    Mutant("epsilon-lowered", "lower-ort: skip_norm", "epsilon 1e-5 in a fused norm",
           "llama", "neutral", after(LOWER, _epsilon(0, "SkipSimplifiedLayerNormalization"))),
    Mutant("epsilon-lowered-in-block-3", "lower-ort: skip_norm", "epsilon 1e-5 in a fused norm",
           "llama", "alike", after(LOWER, _epsilon(6, "SkipSimplifiedLayerNormalization"))),
    Mutant("norm-bias-dropped", "canonicalize: _take_affine", "a LayerNorm loses its bias",
           "bloom", "neutral", after(CANONICALIZE, _norm_input(1, 2, np.zeros_like))),
    Mutant("norm-scale-dropped", "canonicalize: _take_affine", "a norm loses its scale",
           "llama", "neutral", after(CANONICALIZE, _norm_input(1, 1, np.ones_like))),
    Mutant("norm-plus-one-dropped", "canonicalize: _plus_one", "gemma's 1 + w is read as w",
           "gemma2", "neutral", after(CANONICALIZE, _no_plus_one)),
    Mutant("query-norm-dropped", "canonicalize", "queries are not normalised",
           "gemma3", "neutral", after(CANONICALIZE, _norm_gone(1))),
    Mutant("post-norm-dropped", "canonicalize", "what attention adds is not normalised",
           "gemma2", "neutral", after(CANONICALIZE, _norm_gone(1))),
    Mutant("final-norm-dropped", "canonicalize", "the head reads the stream itself",
           "llama", "neutral", after(CANONICALIZE, _norm_gone(10))),
    Mutant("residual-after-norm", "canonicalize", "the stream goes on from its norm",
           "plain", "neutral", after(CANONICALIZE, _residual_after_norm(0))),
    Mutant("residual-after-norm-in-block-3", "canonicalize", "the stream goes on from its norm",
           "llama", "neutral", after(CANONICALIZE, _residual_after_norm(3))),
    Mutant("fused-sum-forgets-skip", "lower-ort: skip_norm", "a fused norm hands on half its sum",
           "plain", "neutral", after(LOWER, _sum_forgets_skip)),
]  # fmt: skip
