"""Trees scored by the order of their rows, not by depth and ancestors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    above,
    attentions,
    constant,
    nodes,
    of_layers,
    op,
    rewired,
    rotaries,
)
from faults.mutant import Edit, Mutant, Touched, after, instead
from faults.passes import LOWER, STEP, TREE
from graftline.passes.grafts import tree_inputs


def row_order(model: ir.Model, before: ir.Node) -> ir.Value:
    """[B, N]: where each new row is written, in place of its depth in the tree."""
    inputs = {v.name: v for v in model.graph.inputs}
    size = op(model, before, "Shape", [inputs["tokens"]], start=1, end=2)
    count = op(model, before, "Squeeze", [size, constant(model, [0], np.int64)])
    zero, one = constant(model, 0, np.int64), constant(model, 1, np.int64)
    rows = op(model, before, "Range", [zero, count, one])
    start = op(model, before, "Unsqueeze", [inputs["write_index"], constant(model, [1], np.int64)])
    return op(model, before, "Add", [start, rows])


def _mask_by_order(layers: Iterable[int] | None) -> Edit:
    """Positions in the mask count rows, not depths in the tree."""

    def edit(model: ir.Model) -> int:
        positions = next(v for v in model.graph.inputs if v.name == "positions")
        order = None
        done = 0
        for node in of_layers(attentions(model), layers):
            copies: dict[ir.Value, ir.Value] = {}
            for maker in reversed(above(node.inputs[3])):
                if order is None:
                    order = row_order(model, model.graph[0])
                inputs = [order if v is positions else copies.get(v, v) for v in maker.inputs]  # type: ignore[call-overload]
                done += sum(v is positions for v in maker.inputs)
                copy = ir.node(maker.op_type, inputs, dict(maker.attributes))
                copy.metadata_props.update(maker.metadata_props)
                model.graph.insert_before(node, copy)
                copy.outputs[0].type, copy.outputs[0].shape = (
                    maker.outputs[0].type, maker.outputs[0].shape
                )  # fmt: skip
                copies[maker.outputs[0]] = copy.outputs[0]
            mask = node.inputs[3]
            if mask in copies:
                rewired(node, 3, copies[mask])
        return done

    return edit


def _chain_for_tree(layers: Iterable[int] | None) -> Edit:
    """A row sees every row before it, its tree or not."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            cache = next(v for v in model.graph.inputs if (v.name or "").startswith("cache."))
            size = op(model, node, "Shape", [cache], start=2, end=3)
            count = op(model, node, "Squeeze", [size, constant(model, [0], np.int64)])
            zero, one = constant(model, 0, np.int64), constant(model, 1, np.int64)
            slots = op(model, node, "Range", [zero, count, one])
            rows = op(
                model, node, "Unsqueeze",
                [row_order(model, node), constant(model, [1, 3], np.int64)],
            )  # fmt: skip
            seen = op(model, node, "LessOrEqual", [slots, rows])
            done += rewired(node, 3, seen)
        return done

    return edit


def _by_row_order(layers: Iterable[int]) -> Edit:
    """Rows of a tree are turned by where they are written, not by their depth."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in rotaries(model, layers, [0, 1]):
            done += rewired(node, 3, row_order(model, model.graph[0]))
        return done

    return edit


def _without(place: int, layers: Iterable[int] | None = None) -> Edit:
    """A fused attention without its positions (9) or its bias (10): it counts rows, and sees all
    before."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(nodes(model, "GroupQueryAttention"), layers):
            if len(node.inputs) > place and node.inputs[place] is not None:
                node.replace_input_with(place, None)
                done += 1
        return done

    return edit


def _turned(real: Any, touched: Touched) -> Any:
    """Rows and columns of the ancestors change places: a node sees its descendants."""

    def write(emit: Any, text: str, *rest: Any) -> Any:
        touched.count += 1
        before, after = text.split("    depth = ", 1)
        turned = f"    turned = Transpose <perm = [0, 2, 1]> ({tree_inputs.REACH})\n"
        after = after.replace(tree_inputs.REACH, "turned")
        return real(emit, f"{before}{turned}    depth = {after}", *rest)

    return write


TREES = [
    Mutant(
        "slopes-by-row-order", "tree-mask: SlotMasks._alibi",
        "a bias counts rows of the tree, not its depth",
        "alibi", "branches", after(TREE, _mask_by_order(None)),
    ),
    Mutant(
        "window-by-row-order", "tree-mask: SlotMasks._window",
        "a window counts rows of the tree, not its depth",
        "window", "branches", after(TREE, _mask_by_order(None)),
    ),
    Mutant(
        "slopes-by-row-order-in-blocks-2-3", "tree-mask: SlotMasks._alibi",
        "in two later blocks a bias counts rows of the tree, not its depth",
        "alibi", "masks", after(TREE, _mask_by_order([2, 3])),
    ),
    Mutant(
        "tree-seen-as-a-chain", "tree-mask: SlotMasks", "a row sees its siblings",
        "plain", "branches", after(TREE, _chain_for_tree(None)),
    ),
    Mutant(
        "tree-seen-as-a-chain-in-blocks-2-3", "tree-mask: SlotMasks",
        "in two later blocks a row sees its siblings",
        "plain", "alike", after(TREE, _chain_for_tree([2, 3])),
    ),
    Mutant("rotary-by-row-order-in-blocks-2-3", "tree-mask",
           "in two later blocks a tree's rows turn by their order, not by their depth",
           "plain", "alike", after(TREE, _by_row_order([2, 3]))),
    Mutant("tree-positions-dropped-lowered", "lower-ort: group_query_attention",
           "a tree's rows turn by their order once attention is fused",
           "plain", "trees", after(LOWER, _without(9))),
    Mutant("tree-bias-dropped-lowered", "lower-ort: group_query_attention",
           "a row sees its siblings once attention is fused",
           "plain", "trees", after(LOWER, _without(10))),
    Mutant("tree-bias-dropped-in-block-3", "lower-ort: group_query_attention",
           "a row sees its siblings in block 3 once attention is fused",
           "plain", "alike", after(LOWER, _without(10, [3]))),
    Mutant("ancestors-turned", "tree-inputs: its text", "a node sees its descendants",
           "plain", "neutral", instead(tree_inputs, "write", _turned), STEP),
]  # fmt: skip
