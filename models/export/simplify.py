"""Fold and fuse an exported graph without ever looking at a checkpoint weight."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnxscript.optimizer as optimizer
import onnxscript.rewriter as rewriter
from onnx_ir.passes import common
from onnxscript.rewriter import onnx_fusions

FOLD_LIMIT = 65_536
"""Most elements of a constant that folding may read or make (masks and tables stay computed)."""


def simplify(model: ir.Model, weights: Collection[str]) -> ir.Model:
    """Inline, fold constants, fuse norms and rotary, share common sub-expressions.

    The initializers named in `weights` become graph inputs meanwhile, so no rule can depend on
    their values: they may be uninitialised memory, or a hundred gigabytes on a disk. They come back
    as placeholders to be filled; those no node reads are dropped. The result is a fresh model of
    plain values: the exporter's own overload `==` and cannot stand in sets and graphs.
    """
    held = [model.graph.initializers.pop(n) for n in weights if n in model.graph.initializers]
    for value in held:
        value.const_value = None
        model.graph.inputs.append(value)
    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants_ir(
            model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT
        )
        model = rewriter.rewrite(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    )(model)
    onnx_fusions.fuse(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
    fresh = ir.from_proto(ir.to_proto(model))
    _restore(fresh, {str(v.name) for v in held})
    return fresh


def _restore(model: ir.Model, held: set[str]) -> None:
    for value in [v for v in model.graph.inputs if v.name in held]:
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.register_initializer(named(value))


def named(value: ir.Value) -> ir.Value:
    """A weight to be registered, whose place is held: reading it raises until it is filled in."""
    assert value.dtype is not None
    assert value.shape is not None
    value.const_value = ir.LazyTensor(
        _unfilled, dtype=value.dtype, shape=value.shape, name=value.name
    )
    return value


def _unfilled() -> ir.TensorProtocol:
    raise AssertionError("a weight was read before the checkpoint filled it in")
